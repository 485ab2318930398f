"""The Remote Asset API."""
