"""The Remote LogStream API."""
