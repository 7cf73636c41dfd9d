"""Results as tables, figures and self-contained HTML pages."""
