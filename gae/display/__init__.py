"""Display of results: tables for notebooks, and the axes of matplotlib that ``plot`` methods draw on."""

from gae.display.axes import INK, LINES, axes_for, blank, legend, whole_ticks
from gae.display.table import html_table

__all__ = ["INK", "LINES", "axes_for", "blank", "html_table", "legend", "whole_ticks"]
