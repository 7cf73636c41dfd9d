"""Side-by-side timings of gae and its alternatives; see README.md."""
