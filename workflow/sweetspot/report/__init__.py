"""The HTML page, its figures and tables."""
