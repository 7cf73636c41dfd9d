"""The ledger of derivations: claims, recorded verdicts, and the checks that recompute them."""
