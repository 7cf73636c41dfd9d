"""Whole jobs that fill a folder and can be resumed: the comparison of engines and the survey of systems."""
