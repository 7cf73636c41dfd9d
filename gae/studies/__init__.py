"""Resumable jobs that write a folder: comparison of engines, and survey of systems."""
