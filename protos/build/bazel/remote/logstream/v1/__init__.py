"""The Remote LogStream API, version 1."""
