"""Method facts say what the .proto file says."""

from __future__ import annotations

import pytest
from google.longrunning import operations_proto_pb2
from google.protobuf import empty_pb2

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.methods import Method, methods_of
from protos.rexec.worker.v1 import worker_pb2


def test_a_unary_method() -> None:
    assert methods_of(re_pb2, "ContentAddressableStorage")["FindMissingBlobs"] == Method(
        path="/build.bazel.remote.execution.v2.ContentAddressableStorage/FindMissingBlobs",
        request_type=re_pb2.FindMissingBlobsRequest,
        response_type=re_pb2.FindMissingBlobsResponse,
        client_streaming=False,
        server_streaming=False,
    )


def test_streams_in_either_direction() -> None:
    assert methods_of(bytestream_pb2, "ByteStream") == {
        "Read": Method(
            "/google.bytestream.ByteStream/Read",
            bytestream_pb2.ReadRequest,
            bytestream_pb2.ReadResponse,
            client_streaming=False,
            server_streaming=True,
        ),
        "Write": Method(
            "/google.bytestream.ByteStream/Write",
            bytestream_pb2.WriteRequest,
            bytestream_pb2.WriteResponse,
            client_streaming=True,
            server_streaming=False,
        ),
        "QueryWriteStatus": Method(
            "/google.bytestream.ByteStream/QueryWriteStatus",
            bytestream_pb2.QueryWriteStatusRequest,
            bytestream_pb2.QueryWriteStatusResponse,
            client_streaming=False,
            server_streaming=False,
        ),
    }


def test_a_stream_in_both_directions() -> None:
    assert methods_of(worker_pb2, "Workers")["Attach"] == Method(
        "/rexec.worker.v1.Workers/Attach",
        worker_pb2.FromWorker,
        worker_pb2.ToWorker,
        client_streaming=True,
        server_streaming=True,
    )


def test_messages_of_other_files_have_the_class_that_their_module_has() -> None:
    assert methods_of(re_pb2, "Execution")["Execute"].response_type is operations_proto_pb2.Operation
    operations = methods_of(operations_proto_pb2, "Operations")
    assert operations["CancelOperation"].path == "/google.longrunning.Operations/CancelOperation"
    assert operations["CancelOperation"].request_type is operations_proto_pb2.CancelOperationRequest
    assert operations["CancelOperation"].response_type is empty_pb2.Empty


def test_a_descriptor_serves_as_well_as_a_module() -> None:
    assert methods_of(re_pb2.DESCRIPTOR, "Capabilities") == methods_of(re_pb2, "Capabilities")


def test_methods_come_by_name_in_the_order_of_the_file() -> None:
    methods = methods_of(re_pb2, "ContentAddressableStorage")
    assert list(methods) == [
        "FindMissingBlobs",
        "BatchUpdateBlobs",
        "BatchReadBlobs",
        "GetTree",
        "SplitBlob",
        "SpliceBlob",
    ]
    assert [method.name for method in methods.values()] == list(methods)


def test_an_unknown_service_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match=r"no service 'Bytestream' \(services: ByteStream\)"):
        methods_of(bytestream_pb2, "Bytestream")
