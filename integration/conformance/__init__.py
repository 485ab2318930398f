"""A conformance kit for servers of the Remote Execution API: `python -m integration.conformance --server grpc://HOST:PORT`.

It speaks the public protocol only, so its verdicts mean the same for every server. README.md in this folder says how to
read them, and how to add a case.
"""
