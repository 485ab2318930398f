"""Interfaces published by the Bazel community."""
