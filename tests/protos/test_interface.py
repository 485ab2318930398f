"""Our .proto files describe the published interface.

The witness is the wheel of BuildStream, an independent client, which carries somewhat older versions of the
same interfaces. Everything it has must be in ours with the same numbers, types and labels; ours may have more.
Its modules are read, never imported: they register the same file names in the descriptor pool.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.build.bazel.remote.logstream.v1 import remote_logstream_pb2
from protos.build.bazel.semver import semver_pb2
from protos.google.bytestream import bytestream_pb2
from protos.grpc.health.v1 import health_pb2
from protos.grpc.reflection.v1 import reflection_pb2
from protos.grpc.reflection.v1alpha import reflection_pb2 as reflection_alpha_pb2

CLIENT = Path(__file__).resolve().parents[2] / ".clients" / "buildstream"

WITNESSED: dict[str, FileDescriptor] = {
    file.name: file
    for file in (
        remote_asset_pb2.DESCRIPTOR,
        re_pb2.DESCRIPTOR,
        semver_pb2.DESCRIPTOR,
        bytestream_pb2.DESCRIPTOR,
    )
}

Facts = dict[str, tuple[object, ...]]


def serialized_file(module: Path) -> FileDescriptorProto:
    """The descriptor that a generated module would register."""
    for node in ast.walk(ast.parse(module.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(attr="AddSerializedFile"), args=[ast.Constant(value=bytes() as data)]):
                return FileDescriptorProto.FromString(data)
    raise AssertionError(f"{module} registers no descriptor")


@pytest.fixture(scope="module")
def witness() -> dict[str, FileDescriptorProto]:
    found = [
        serialized_file(module)
        for module in sorted(CLIENT.glob("lib/python3*/site-packages/buildstream/_protos/**/*_pb2.py"))
    ]
    assert found, f"no BuildStream in {CLIENT}: run make clients"
    return {file.name: file for file in found}


def field_facts(message: DescriptorProto, field: FieldDescriptorProto) -> tuple[object, ...]:
    # A proto3 optional field sits in a oneof that the compiler made up, which is nobody's business.
    in_oneof = field.HasField("oneof_index") and not field.proto3_optional
    return (
        "field",
        field.number,
        FieldDescriptorProto.Type.Name(field.type),
        field.type_name.removeprefix("."),
        FieldDescriptorProto.Label.Name(field.label),
        field.proto3_optional,
        message.oneof_decl[field.oneof_index].name if in_oneof else None,
    )


def enum_facts(enum: EnumDescriptorProto, scope: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    for value in enum.value:
        yield f"{scope}.{enum.name}.{value.name}", ("value", value.number)


def message_facts(message: DescriptorProto, scope: str) -> Iterator[tuple[str, tuple[object, ...]]]:
    name = f"{scope}.{message.name}"
    yield name, ("message", message.options.map_entry)
    for field in message.field:
        yield f"{name}.{field.name}", field_facts(message, field)
    for reserved in message.reserved_range:
        for number in range(reserved.start, reserved.end):
            yield f"{name} number {number}", ("reserved",)
    for enum in message.enum_type:
        yield from enum_facts(enum, name)
    for nested in message.nested_type:
        yield from message_facts(nested, name)


def facts_of(file: FileDescriptorProto) -> Facts:
    """All that two ends must agree on to understand each other, by full name."""
    facts: Facts = {file.package: ("package", file.syntax)}
    for message in file.message_type:
        facts.update(message_facts(message, file.package))
    for enum in file.enum_type:
        facts.update(enum_facts(enum, file.package))
    for service in file.service:
        for method in service.method:
            facts[f"{file.package}.{service.name}.{method.name}"] = (
                "method",
                method.input_type.removeprefix("."),
                method.output_type.removeprefix("."),
                method.client_streaming,
                method.server_streaming,
            )
    return facts


def our_facts(file: FileDescriptor) -> Facts:
    return facts_of(FileDescriptorProto.FromString(file.serialized_pb))


@pytest.mark.parametrize("name", sorted(WITNESSED))
def test_everything_an_independent_client_knows_is_in_ours_identically(
    name: str, witness: dict[str, FileDescriptorProto]
) -> None:
    theirs, ours = facts_of(witness[name]), our_facts(WITNESSED[name])
    differing = {fact: (value, ours.get(fact)) for fact, value in theirs.items() if ours.get(fact) != value}
    assert differing == {}


def test_the_witness_is_not_an_empty_one(witness: dict[str, FileDescriptorProto]) -> None:
    """A reader that found nothing in the wheel would agree with everything."""
    facts = facts_of(witness[re_pb2.DESCRIPTOR.name])
    execution = "build.bazel.remote.execution.v2"
    assert facts[f"{execution}.Digest.size_bytes"][:3] == ("field", 2, "TYPE_INT64")
    assert facts[f"{execution}.DigestFunction.Value.SHA256"] == ("value", 1)
    assert facts[f"{execution}.Execution.Execute"][3:] == (False, True)
    assert facts[f"{execution}.Action number 8"] == ("reserved",)
    assert len(facts) > 250


def numbers(file: FileDescriptor, *messages: str) -> dict[str, dict[str, int]]:
    return {
        message: {field.name: field.number for field in file.message_types_by_name[message].fields}
        for message in messages
    }


def test_what_is_newer_than_the_witness_has_the_published_numbers() -> None:
    """Splitting and splicing of blobs as of v2.12."""
    file = re_pb2.DESCRIPTOR
    assert numbers(
        file,
        "SplitBlobRequest",
        "SplitBlobResponse",
        "SpliceBlobRequest",
        "SpliceBlobResponse",
        "FastCdc2020Params",
        "RepMaxCdcParams",
    ) == {
        "SplitBlobRequest": {"instance_name": 1, "blob_digest": 2, "digest_function": 3, "chunking_function": 4},
        "SplitBlobResponse": {"chunk_digests": 1, "chunking_function": 2},
        "SpliceBlobRequest": {
            "instance_name": 1,
            "blob_digest": 2,
            "chunk_digests": 3,
            "digest_function": 4,
            "chunking_function": 5,
        },
        "SpliceBlobResponse": {"blob_digest": 1},
        "FastCdc2020Params": {"avg_chunk_size_bytes": 1, "seed": 2},
        "RepMaxCdcParams": {"min_chunk_size_bytes": 1, "horizon_size_bytes": 2},
    }
    assert dict(re_pb2.ChunkingFunction.Value.items()) == {"UNKNOWN": 0, "FAST_CDC_2020": 1, "REP_MAX_CDC": 2}
    capabilities = numbers(file, "CacheCapabilities")["CacheCapabilities"]
    assert [name for name, number in sorted(capabilities.items(), key=lambda item: item[1]) if number >= 8] == [
        "max_cas_blob_size_bytes",
        "split_blob_support",
        "splice_blob_support",
        "fast_cdc_2020_params",
        "rep_max_cdc_params",
    ]


def test_interfaces_without_a_witness_have_the_published_numbers() -> None:
    """LogStream, the gRPC health check and reflection."""
    assert numbers(remote_logstream_pb2.DESCRIPTOR, "CreateLogStreamRequest", "LogStream") == {
        "CreateLogStreamRequest": {"parent": 1},
        "LogStream": {"name": 1, "write_resource_name": 2},
    }
    assert numbers(health_pb2.DESCRIPTOR, "HealthCheckRequest", "HealthCheckResponse", "HealthListResponse") == {
        "HealthCheckRequest": {"service": 1},
        "HealthCheckResponse": {"status": 1},
        "HealthListResponse": {"statuses": 1},
    }
    assert dict(health_pb2.HealthCheckResponse.ServingStatus.items()) == {
        "UNKNOWN": 0,
        "SERVING": 1,
        "NOT_SERVING": 2,
        "SERVICE_UNKNOWN": 3,
    }
    for reflection in (reflection_pb2, reflection_alpha_pb2):
        messages = list(reflection.DESCRIPTOR.message_types_by_name)
        assert numbers(reflection.DESCRIPTOR, *messages) == {
            "ServerReflectionRequest": {
                "host": 1,
                "file_by_filename": 3,
                "file_containing_symbol": 4,
                "file_containing_extension": 5,
                "all_extension_numbers_of_type": 6,
                "list_services": 7,
            },
            "ExtensionRequest": {"containing_type": 1, "extension_number": 2},
            "ServerReflectionResponse": {
                "valid_host": 1,
                "original_request": 2,
                "file_descriptor_response": 4,
                "all_extension_numbers_response": 5,
                "list_services_response": 6,
                "error_response": 7,
            },
            "FileDescriptorResponse": {"file_descriptor_proto": 1},
            "ExtensionNumberResponse": {"base_type_name": 1, "extension_number": 2},
            "ListServiceResponse": {"service": 1},
            "ServiceResponse": {"name": 1},
            "ErrorResponse": {"error_code": 1, "error_message": 2},
        }
