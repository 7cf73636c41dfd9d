"""Gradients through a solve: unrolled, truncated, implicit or detached."""
