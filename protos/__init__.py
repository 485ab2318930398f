"""The wire interface: .proto files in our own words, with the Python code generated from them beside each.

Packages, messages, fields and numbers are those of the published interfaces (Remote Execution API v2.12,
Remote Asset, LogStream, ByteStream, gRPC health); `rexec/worker` is our own. Import the generated modules by
their path below this package, for example::

    from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

`google.rpc` and `google.longrunning` come from googleapis-common-protos. After a change to a .proto file run
`python -m protos.generate`.
"""
