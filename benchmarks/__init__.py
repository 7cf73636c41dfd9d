"""Side-by-side timings of gae against what a user would pick instead; see README.md."""
