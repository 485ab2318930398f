"""The Remote Asset API, version 1."""
