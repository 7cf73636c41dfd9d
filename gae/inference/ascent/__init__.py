"""Gradient ascent on codes: the engine, its problem, its solver and its stopping rules."""
