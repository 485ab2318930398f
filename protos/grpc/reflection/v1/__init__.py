"""Server reflection, version 1."""
