"""Interfaces of our own; the top-level package of this name is another."""
