"""The health check, version 1."""
