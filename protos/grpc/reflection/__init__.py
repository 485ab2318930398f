"""Server reflection."""
