"""Step rules of an ascent, batched over independent rows."""
