"""Streams of bytes under a resource name."""
