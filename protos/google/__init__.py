"""Interfaces of `google` that googleapis-common-protos does not ship; the top-level package is another."""
