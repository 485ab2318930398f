"""Interfaces published under the name `build`."""
