"""The ledger of derivations: claims, their recorded verdicts, and the checks that recompute them."""
