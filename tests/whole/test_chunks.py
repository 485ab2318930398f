"""Chunks over real connections: of what a worker produced, and what a client is told (behaviour 54)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from cas.chunking import ChunkingFunction
from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from tests.blobs import read
from tests.whole.client import Client, whole_server

CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with whole_server(tmp_path) as client:
        yield client


async def ask(client: Client, method: str, request: Message, response: type[Message]) -> Any:
    """The answer to one call. Raises AioRpcError."""
    call: Any = client.channel.unary_unary(
        f"{CAS}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=response.FromString,
    )
    return await call(request, timeout=60)


@pytest.mark.parametrize("function", list(ChunkingFunction))
async def test_54_what_a_worker_produced_is_split_and_spliced(client: Client, function: ChunkingFunction) -> None:
    action = await client.action("head -c 3000000 /dev/urandom > out", ["out"])
    [file] = (await client.execute(action)).result.output_files
    request = re_pb2.SplitBlobRequest(blob_digest=file.digest, chunking_function=function.value)
    answer = await ask(client, "SplitBlob", request, re_pb2.SplitBlobResponse)
    assert answer.chunking_function == function.value
    chunks = [Digest.from_proto(message) for message in answer.chunk_digests]
    assert len(chunks) > 1
    data = b"".join([await read(client.store, chunk) for chunk in chunks])
    assert Digest.of(data) == Digest.from_proto(file.digest)

    [more] = await client.upload(b"and more")
    longer = Digest.of(data + b"and more")
    splice = re_pb2.SpliceBlobRequest(
        blob_digest=longer.to_proto(),
        chunk_digests=[*answer.chunk_digests, more.to_proto()],
        chunking_function=function.value,
    )
    spliced = await ask(client, "SpliceBlob", splice, re_pb2.SpliceBlobResponse)
    assert spliced.blob_digest == longer.to_proto()
    assert await read(client.store, longer) == data + b"and more"


async def test_54_a_client_is_told_which_chunks_are_missing(client: Client) -> None:
    missing = Digest.of(b"missing")
    [there] = await client.upload(b"there")
    request = re_pb2.SpliceBlobRequest(
        blob_digest=Digest.of(b"theremissing").to_proto(), chunk_digests=[there.to_proto(), missing.to_proto()]
    )
    with pytest.raises(aio.AioRpcError) as failure:
        await ask(client, "SpliceBlob", request, re_pb2.SpliceBlobResponse)
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND
    assert str(missing) in (failure.value.details() or "")
    trailers = dict(failure.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    found = error_details_pb2.PreconditionFailure()
    assert status.details[0].Unpack(found)
    assert [violation.subject for violation in found.violations] == [f"blobs/{missing.hash}/7"]


async def test_54_a_blob_that_exists_without_its_chunks_has_a_status_of_its_own(client: Client) -> None:
    [blob] = await client.upload(b"blob")
    chunks = [Digest.of(b"bl").to_proto(), Digest.of(b"ob").to_proto()]
    request = re_pb2.SpliceBlobRequest(blob_digest=blob.to_proto(), chunk_digests=chunks)
    with pytest.raises(aio.AioRpcError) as failure:
        await ask(client, "SpliceBlob", request, re_pb2.SpliceBlobResponse)
    assert failure.value.code() is grpc.StatusCode.ALREADY_EXISTS
