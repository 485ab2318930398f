"""Server reflection, version 1 alpha."""
