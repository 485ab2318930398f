"""rexec: a remote execution server for the Bazel Remote Execution API."""

__version__ = "0.1.0"
