"""Experiments: one claim per file, from a frozen configuration to results/claim.json and results/claim.png."""
