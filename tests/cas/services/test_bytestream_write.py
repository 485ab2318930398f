"""ByteStream.Write and QueryWriteStatus (behaviours 39, 40, 43 to 48, 50)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable

import pytest

from cas.compression import Compressor, compress
from cas.context import Identity, RequestContext
from cas.digest import EMPTY, Digest
from cas.errors import Code, DigestMismatch, MalformedRequest, NotAllowed, OffsetMismatch, UploadsFull
from cas.hashing import DigestFunction
from cas.services.bytestream import ByteStream
from cas.store import CHUNK_BYTES
from cas.uploads import Uploads
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2

from .cache import Cache, Stream

SMALL = random.Random(1).randbytes(50_000)
LARGE = random.Random(2).randbytes(2 * CHUNK_BYTES) + b"compressible" * 100_000
BOTH = pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])
COMPRESSED = pytest.mark.parametrize("compressor", [c for c in Compressor if c is not Compressor.IDENTITY])
SISO = re_pb2.RequestMetadata(tool_details=re_pb2.ToolDetails(tool_name="siso"))


class Client:
    """A client of the service; every call ends within 10 seconds."""

    def __init__(self, cache: Cache, uploads: Uploads, max_blob_bytes: int = 0) -> None:
        self.cache = cache
        self.uploads = uploads
        self.service = ByteStream(cache.instances, uploads, max_blob_bytes)
        self.context = RequestContext()

    async def send(self, stream: Stream) -> int:
        async with asyncio.timeout(10):
            return (await self.service.Write(aiter(stream), self.context)).committed_size

    async def write(self, name: str, data: bytes, *, start: int = 0, size: int = 16 << 10) -> int:
        return await self.send(Stream(messages(name, data, start=start, size=size)))

    async def break_off(self, name: str, data: bytes, *, start: int = 0) -> None:
        """Send `data` without an end and vanish."""
        with pytest.raises(ConnectionResetError):
            await self.send(Stream(messages(name, data, start=start, finish=False), broken=True))

    async def status(self, name: str) -> tuple[int, bool]:
        request = bytestream_pb2.QueryWriteStatusRequest(resource_name=name)
        response = await self.service.QueryWriteStatus(request, self.context)
        return response.committed_size, response.complete

    @property
    def blobs(self) -> dict[Digest, bytes]:
        return self.cache.memory.blobs


@pytest.fixture
async def client(cache: Cache) -> AsyncIterator[Client]:
    async with Uploads() as uploads:
        yield Client(cache, uploads)


def messages(
    name: str, data: bytes, *, start: int = 0, size: int = 16 << 10, finish: bool = True
) -> list[bytestream_pb2.WriteRequest]:
    """`data` as Bazel sends it: the name in the first message only, the end said in the last."""
    sent = [
        bytestream_pb2.WriteRequest(
            resource_name="" if offset else name, write_offset=start + offset, data=data[offset : offset + size]
        )
        for offset in range(0, max(len(data), 1), size)
    ]
    sent[-1].finish_write = finish
    return sent


def name_of(blob: bytes, compressor: Compressor = Compressor.IDENTITY, prefix: str = "main/") -> str:
    digest = Digest.of(blob)
    kind = f"compressed-blobs/{compressor.resource_segment}" if compressor is not Compressor.IDENTITY else "blobs"
    return f"{prefix}uploads/0c2f4e1a/{kind}/{digest.hash}/{digest.size_bytes}"


@BOTH
@pytest.mark.parametrize("size", [16 << 10, 16 << 20], ids=["many messages", "one message"])
@pytest.mark.parametrize("prefix", ["main/", "", "/"])
async def test_43_a_blob_is_stored_whatever_the_messages_and_the_prefix(
    client: Client, blob: bytes, size: int, prefix: str
) -> None:
    assert await client.write(name_of(blob, prefix=prefix) + "/meta/data", blob, size=size) == len(blob)
    assert client.blobs == {Digest.of(blob): blob}


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_43_the_function_is_named_or_told_by_the_length(client: Client, function: DigestFunction) -> None:
    digest = Digest.of(SMALL, function)
    assert await client.write(f"uploads/u/{digest.blob_name()}", SMALL) == len(SMALL)
    assert client.blobs == {digest: SMALL}


async def test_the_name_may_be_repeated_in_every_message(client: Client) -> None:
    sent = messages(name_of(SMALL), SMALL)
    for message in sent:
        message.resource_name = name_of(SMALL)
    assert await client.send(Stream(sent)) == len(SMALL)


async def test_messages_without_data_are_welcome(client: Client) -> None:
    name = name_of(SMALL)
    sent = [
        bytestream_pb2.WriteRequest(resource_name=name),
        bytestream_pb2.WriteRequest(data=SMALL),
        bytestream_pb2.WriteRequest(write_offset=len(SMALL), finish_write=True),
    ]
    assert await client.send(Stream(sent)) == len(SMALL)
    assert client.blobs == {Digest.of(SMALL): SMALL}


async def test_44_a_write_without_messages_is_refused(client: Client) -> None:
    with pytest.raises(MalformedRequest, match="without a message"):
        await client.send(Stream([]))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda sent: setattr(sent[0], "resource_name", ""), id="no name at the start"),
        pytest.param(lambda sent: setattr(sent[1], "resource_name", name_of(b"other")), id="another name later"),
        pytest.param(lambda sent: setattr(sent[0], "write_offset", 1), id="start past the end of nothing"),
        pytest.param(lambda sent: setattr(sent[0], "write_offset", -1), id="negative start"),
        pytest.param(lambda sent: setattr(sent[0], "write_offset", 2**63 - 1), id="start past the blob"),
        pytest.param(lambda sent: setattr(sent[1], "write_offset", 0), id="going back"),
        pytest.param(lambda sent: setattr(sent[1], "write_offset", (16 << 10) + 1), id="leaving a gap"),
        pytest.param(lambda sent: setattr(sent[-1], "finish_write", False), id="no finish_write"),
        pytest.param(lambda sent: setattr(sent[1], "finish_write", True), id="finish_write too early"),
        pytest.param(lambda sent: sent.pop(), id="no last message"),
        pytest.param(lambda sent: setattr(sent[1], "data", b"x" * (16 << 10)), id="other bytes"),
        pytest.param(lambda sent: setattr(sent[-1], "data", sent[-1].data + b"x"), id="a byte too many"),
        pytest.param(lambda sent: setattr(sent[-1], "data", sent[-1].data[:-1]), id="a byte too few"),
    ],
)
@BOTH
async def test_44_a_stream_that_breaks_the_rules_is_refused_and_stores_nothing(
    client: Client, blob: bytes, change: object
) -> None:
    sent = messages(name_of(blob), blob)
    assert callable(change)
    change(sent)
    with pytest.raises(MalformedRequest) as refused:
        await client.send(Stream(sent))
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert client.blobs == {}


@pytest.mark.parametrize("data", [SMALL[:-1], SMALL + b"x", b"x" * len(SMALL), b""])
async def test_44_one_message_with_other_bytes_stores_nothing(client: Client, data: bytes) -> None:
    with pytest.raises(DigestMismatch):
        await client.write(name_of(SMALL), data, size=16 << 20)
    assert client.blobs == {}


@pytest.mark.parametrize("name", ["", "main", f"blobs/{'a' * 64}/1", f"nobody/uploads/u/blobs/{'a' * 64}/1"])
async def test_40_a_malformed_name_or_unknown_instance_is_refused(client: Client, name: str) -> None:
    with pytest.raises(MalformedRequest):
        await client.write(name, b"x")
    with pytest.raises(MalformedRequest):
        await client.status(name)


@BOTH
@pytest.mark.parametrize("cut", [1, 40_000, -1])
async def test_44_48_a_stream_cut_short_commits_nothing_and_can_be_resumed(
    client: Client, blob: bytes, cut: int
) -> None:
    name, cut = name_of(blob), len(blob[:cut])
    assert await client.status(name) == (0, False)
    await client.break_off(name, blob[:cut])
    assert client.blobs == {}
    assert await client.status(name) == (cut, False)
    with pytest.raises(OffsetMismatch):
        await client.write(name, blob[cut - 1 :] + b"x", start=cut + 1)
    assert await client.write(name, blob[cut:], start=cut) == len(blob)
    assert client.blobs == {Digest.of(blob): blob}
    assert await client.status(name) == (len(blob), True)


@BOTH
async def test_44_a_stream_closed_without_finish_write_can_be_resumed_too(client: Client, blob: bytes) -> None:
    name = name_of(blob)
    with pytest.raises(MalformedRequest, match="without finish_write"):
        await client.send(Stream(messages(name, blob, finish=False)))
    assert await client.status(name) == (len(blob), False)
    last = bytestream_pb2.WriteRequest(resource_name=name, write_offset=len(blob), finish_write=True)
    assert await client.send(Stream([last])) == len(blob)
    assert client.blobs == {Digest.of(blob): blob}


@BOTH
async def test_44_a_client_may_start_over(client: Client, blob: bytes) -> None:
    await client.break_off(name_of(blob), b"wrong")
    assert await client.write(name_of(blob), blob) == len(blob)
    assert client.blobs == {Digest.of(blob): blob}


@BOTH
async def test_45_writing_a_blob_that_exists_returns_without_reading_the_rest(client: Client, blob: bytes) -> None:
    await client.cache.add(blob)
    stream = Stream(messages(name_of(blob), blob, size=1_000))
    assert await client.send(stream) == len(blob)
    assert stream.read_messages == 1


@BOTH
@COMPRESSED
@pytest.mark.parametrize("size", [1_000, 16 << 20], ids=["many messages", "one message"])
async def test_45_writing_a_blob_that_exists_compressed_gives_minus_one(
    client: Client, blob: bytes, compressor: Compressor, size: int
) -> None:
    await client.cache.add(blob)
    stream = Stream(messages(name_of(blob, compressor), compress(blob, compressor), size=size))
    assert await client.send(stream) == -1
    assert stream.read_messages == 1


@BOTH
@COMPRESSED
@pytest.mark.parametrize("size", [10_000, 16 << 20], ids=["many messages", "one message"])
async def test_46_a_compressed_write_gives_the_compressed_count_and_to_siso_the_size(
    client: Client, blob: bytes, compressor: Compressor, size: int
) -> None:
    packed = compress(blob, compressor)
    assert await client.write(name_of(blob, compressor), packed, size=size) == len(packed)
    assert client.blobs == {Digest.of(blob): blob}
    client.cache = Cache()
    client.service = ByteStream(client.cache.instances, client.uploads)
    client.context = RequestContext(request_metadata=SISO)
    assert await client.write(name_of(blob, compressor), packed, size=size) == len(blob)
    assert client.blobs == {Digest.of(blob): blob}


@BOTH
@COMPRESSED
@pytest.mark.parametrize("cut", [0.1, 0.6])
async def test_47_a_compressed_write_is_resumed_in_bytes_of_the_blob(
    client: Client, blob: bytes, compressor: Compressor, cut: float
) -> None:
    name = name_of(blob, compressor)
    packed = compress(blob, compressor)
    await client.break_off(name, packed[: int(len(packed) * cut)])
    received, complete = await client.status(name)
    assert (0 <= received < len(blob), complete, client.blobs) == (True, False, {})
    rest = compress(blob[received:], compressor)
    assert await client.write(name, rest, start=received) == received + len(rest)
    assert client.blobs == {Digest.of(blob): blob}


@COMPRESSED
async def test_47_later_offsets_add_compressed_bytes(client: Client, compressor: Compressor) -> None:
    blob = b"compressible" * 1_000
    sent = messages(name_of(blob, compressor), compress(blob, compressor), size=10)
    sent[1].write_offset += 1
    with pytest.raises(OffsetMismatch):
        await client.send(Stream(sent))


@COMPRESSED
@pytest.mark.parametrize("size", [1_000, 16 << 20], ids=["many messages", "one message"])
@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda packed: packed[:-1], id="cut off"),
        pytest.param(lambda packed: b"", id="nothing"),
        pytest.param(lambda packed: b"\xff\xfe plainly not compressed" + packed, id="garbage"),
    ],
)
async def test_50_data_that_do_not_decompress_are_refused_and_forgotten(
    client: Client, compressor: Compressor, size: int, make: object
) -> None:
    assert callable(make)
    name = name_of(SMALL, compressor)
    with pytest.raises(MalformedRequest):
        await client.write(name, make(compress(SMALL, compressor)), size=size)
    assert client.blobs == {}
    assert await client.status(name) == (0, False)


@COMPRESSED
@pytest.mark.parametrize("size", [1_000, 16 << 20], ids=["many messages", "one message"])
async def test_50_a_bomb_is_stopped_at_the_declared_size(client: Client, compressor: Compressor, size: int) -> None:
    bomb = compress(bytes(64 << 20), compressor)
    digest = Digest.of(bytes(1_000))
    name = f"uploads/u/compressed-blobs/{compressor.resource_segment}/{digest.hash}/{digest.size_bytes}"
    with pytest.raises(MalformedRequest, match="1000 bytes declared"):
        await client.write(name, bomb, size=size)
    assert client.blobs == {}


@COMPRESSED
async def test_50_other_bytes_compressed_are_a_mismatch(client: Client, compressor: Compressor) -> None:
    for size in (1_000, 16 << 20):
        with pytest.raises(DigestMismatch):
            await client.write(name_of(SMALL, compressor), compress(SMALL[::-1], compressor), size=size)
    assert client.blobs == {}


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_39_the_empty_blob_needs_no_bytes(client: Client, function: DigestFunction) -> None:
    name = f"uploads/u/{EMPTY[function].blob_name()}"
    assert await client.status(name) == (0, True)
    assert await client.write(name, b"") == 0
    assert await client.send(Stream([bytestream_pb2.WriteRequest(resource_name=name)])) == 0


@BOTH
async def test_48_the_status_of_a_stored_blob_is_complete_whoever_wrote_it(client: Client, blob: bytes) -> None:
    await client.cache.add(blob)
    assert await client.status(name_of(blob)) == (len(blob), True)
    assert await client.status(name_of(blob, Compressor.ZSTD)) == (len(blob), True)


async def test_a_blob_past_the_advertised_size_is_refused_unread(cache: Cache) -> None:
    async with Uploads() as uploads:
        client = Client(cache, uploads, max_blob_bytes=len(SMALL))
        assert await client.write(name_of(SMALL), SMALL) == len(SMALL)
        stream = Stream(messages(name_of(SMALL + b"x"), SMALL + b"x"))
        with pytest.raises(MalformedRequest, match="too large"):
            await client.send(stream)
        assert stream.read_messages == 1


async def test_an_identity_that_may_not_read_may_not_write_either(client: Client) -> None:
    client.context = RequestContext(identity=Identity(may_read=False))
    with pytest.raises(NotAllowed):
        await client.write(name_of(SMALL), SMALL)
    with pytest.raises(NotAllowed):
        await client.status(name_of(SMALL))


async def test_a_small_blob_in_one_message_opens_no_upload(cache: Cache) -> None:
    async with Uploads(max_uploads=0) as uploads:
        client = Client(cache, uploads)
        for compressor in Compressor:
            blob = SMALL + compressor.name.encode()
            packed = compress(blob, compressor)
            assert await client.write(name_of(blob, compressor), packed, size=16 << 20) == len(packed)
        with pytest.raises(UploadsFull):
            await client.write(name_of(SMALL), SMALL, size=1_000)


@BOTH
async def test_44_a_call_that_is_cancelled_can_be_resumed(client: Client, blob: bytes) -> None:
    arrived = asyncio.Event()

    class Stalling(Stream):
        async def __aiter__(self) -> AsyncIterator[bytestream_pb2.WriteRequest]:
            async for message in super().__aiter__():
                yield message
            arrived.set()
            await asyncio.Event().wait()

    name = name_of(blob)
    async with asyncio.timeout(10):
        call = asyncio.create_task(client.send(Stalling(messages(name, blob[:30_000], finish=False))))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert await client.status(name) == (30_000, False)
    assert await client.write(name, blob[30_000:], start=30_000) == len(blob)
    assert client.blobs == {Digest.of(blob): blob}


async def test_many_writes_at_once_do_not_disturb_each_other(client: Client) -> None:
    """Bazel sends up to 82 blobs at once over one connection."""
    blobs: Iterable[bytes] = [random.Random(n).randbytes(40_000) for n in range(82)]
    async with asyncio.TaskGroup() as tasks:
        for blob in blobs:
            tasks.create_task(client.write(name_of(blob), blob))
    assert set(client.blobs.values()) == set(blobs)
    assert (len(client.uploads), client.uploads.partial_bytes) == (0, 0)
