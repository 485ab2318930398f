"""Interfaces published by gRPC."""
