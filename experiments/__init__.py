"""One claim per file: a frozen configuration in, results/claim.json and results/claim.png out."""
