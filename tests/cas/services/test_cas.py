"""FindMissingBlobs, BatchUpdateBlobs and BatchReadBlobs (behaviours 39 to 42, 50)."""

from __future__ import annotations

import random

import pytest
from google.rpc import status_pb2

from cas.compression import Compressor, compress, compressor_of_value, decompress
from cas.context import Identity, RequestContext
from cas.digest import EMPTY, Digest
from cas.errors import Code, MalformedRequest, NotAllowed
from cas.hashing import DigestFunction
from cas.memory import MemoryStore
from cas.services.cas import (
    MAX_BATCH_BLOBS,
    MAX_BATCH_TOTAL_SIZE_BYTES,
    MAX_INFLATED_BATCH_BYTES,
    MAX_MESSAGE_BYTES,
    ContentAddressableStorage,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

from .cache import Cache

BLOBS = [b"one", b"two" * 1_000, random.Random(3).randbytes(100_000)]
FUNCTION = pytest.mark.parametrize("function", list(DigestFunction))
COMPRESSED = pytest.mark.parametrize("compressor", [c for c in Compressor if c is not Compressor.IDENTITY])
NO_DIGESTS = pytest.mark.parametrize(
    "message",
    [
        re_pb2.Digest(),
        re_pb2.Digest(hash="A" * 64, size_bytes=1),
        re_pb2.Digest(hash="g" * 64, size_bytes=1),
        re_pb2.Digest(hash="a" * 63, size_bytes=1),
        re_pb2.Digest(hash="a" * 64 + "\n", size_bytes=1),
        re_pb2.Digest(hash="a" * 64, size_bytes=-1),
        re_pb2.Digest(hash="../../etc/passwd", size_bytes=1),
    ],
    ids=["unset", "upper case", "no hex", "short", "newline", "negative size", "a path"],
)


def protos(*digests: Digest) -> list[re_pb2.Digest]:
    return [digest.to_proto() for digest in digests]


class Client:
    """A client of the service for the instance "main"."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.service = ContentAddressableStorage(cache.instances)
        self.context = RequestContext()

    async def find_missing(
        self, *messages: re_pb2.Digest, instance_name: str = "main", function: int = 0
    ) -> list[re_pb2.Digest]:
        request = re_pb2.FindMissingBlobsRequest(
            instance_name=instance_name,
            blob_digests=messages,
            digest_function=function,  # type: ignore[arg-type]
        )
        return list((await self.service.FindMissingBlobs(request, self.context)).missing_blob_digests)

    async def update(
        self, *entries: re_pb2.BatchUpdateBlobsRequest.Request, function: int = 0
    ) -> list[status_pb2.Status]:
        request = re_pb2.BatchUpdateBlobsRequest(
            instance_name="main",
            requests=entries,
            digest_function=function,  # type: ignore[arg-type]
        )
        responses = (await self.service.BatchUpdateBlobs(request, self.context)).responses
        assert [response.digest for response in responses] == [entry.digest for entry in entries]
        return [response.status for response in responses]

    async def codes(self, *entries: re_pb2.BatchUpdateBlobsRequest.Request, function: int = 0) -> list[int]:
        return [status.code for status in await self.update(*entries, function=function)]

    async def read(
        self, *messages: re_pb2.Digest, accept: tuple[int, ...] = (), function: int = 0
    ) -> re_pb2.BatchReadBlobsResponse:
        request = re_pb2.BatchReadBlobsRequest(
            instance_name="main",
            digests=messages,
            acceptable_compressors=accept,  # type: ignore[arg-type]
            digest_function=function,  # type: ignore[arg-type]
        )
        return await self.service.BatchReadBlobs(request, self.context)


def entry(
    blob: bytes, data: bytes | None = None, compressor: int = 0, function: DigestFunction = DigestFunction.SHA256
) -> re_pb2.BatchUpdateBlobsRequest.Request:
    return re_pb2.BatchUpdateBlobsRequest.Request(
        digest=Digest.of(blob, function).to_proto(),
        data=blob if data is None else data,
        compressor=compressor,  # type: ignore[arg-type]
    )


@pytest.fixture
def client(cache: Cache) -> Client:
    return Client(cache)


async def test_41_missing_blobs_are_named_once_each(client: Client) -> None:
    [there] = await client.cache.add(b"there")
    lost = [Digest.of(b"lost"), Digest.of(b"gone")]
    found = await client.find_missing(*protos(lost[0], there, lost[1], lost[0], there, lost[0]))
    assert sorted(digest.hash for digest in found) == sorted(digest.hash for digest in lost)


async def test_41_an_empty_request_is_answered(client: Client) -> None:
    assert await client.find_missing() == []


async def test_41_a_hundred_thousand_digests_are_answered(client: Client) -> None:
    digests = [re_pb2.Digest(hash=f"{n:064x}", size_bytes=n) for n in range(1, 100_001)]
    assert len(await client.find_missing(*digests)) == 100_000


async def test_40_a_wrong_digest_among_many_is_named_by_its_place(client: Client) -> None:
    digests = [re_pb2.Digest(hash=f"{n:064x}", size_bytes=n) for n in range(20_000)]
    digests[12_345].hash = "oops"
    with pytest.raises(MalformedRequest, match=r"blob_digests\[12345\].*'oops'"):
        await client.find_missing(*digests)


async def test_digests_of_several_functions_are_told_by_their_length(client: Client) -> None:
    digests = [Digest.of(b"x", function) for function in (DigestFunction.SHA256, DigestFunction.SHA1)]
    assert sorted(map(str, await client.find_missing(*protos(*digests)))) == sorted(map(str, protos(*digests)))


async def test_41_blobs_that_are_asked_for_live_longer() -> None:
    client = Client(Cache(memory=MemoryStore(max_bytes=10_000)))
    old, newer = await client.cache.add(b"o" * 3_000, b"n" * 3_000)
    assert await client.find_missing(old.to_proto()) == []
    await client.cache.add(b"x" * 3_000)
    assert await client.find_missing(*protos(old, newer)) == protos(newer)


@FUNCTION
async def test_39_the_empty_blob_is_never_missing(client: Client, function: DigestFunction) -> None:
    empty = EMPTY[function].to_proto()
    assert await client.find_missing(empty, function=function.value) == []
    response = await client.read(empty, function=function.value)
    assert (response.responses[0].status.code, response.responses[0].data) == (Code.OK, b"")
    assert await client.codes(entry(b"", function=function), function=function.value) == [Code.OK]


@NO_DIGESTS
async def test_40_what_is_no_digest_is_refused(client: Client, message: re_pb2.Digest) -> None:
    good = Digest.of(b"good").to_proto()
    with pytest.raises(MalformedRequest, match=r"blob_digests\[1\]"):
        await client.find_missing(good, message)
    with pytest.raises(MalformedRequest, match=r"digests\[1\]"):
        await client.read(good, message)
    with pytest.raises(MalformedRequest, match=r"requests.digest\[1\]"):
        await client.update(entry(b"x"), re_pb2.BatchUpdateBlobsRequest.Request(digest=message, data=b"x"))
    assert client.cache.memory.blobs == {}


async def test_40_the_right_hash_with_a_wrong_size_is_missing(client: Client) -> None:
    [digest] = await client.cache.add(b"there")
    wrong = re_pb2.Digest(hash=digest.hash, size_bytes=4)
    assert await client.find_missing(wrong) == [wrong]


@FUNCTION
async def test_the_function_of_the_request_decides(client: Client, function: DigestFunction) -> None:
    [digest] = await client.cache.add(b"there", function=function)
    assert await client.find_missing(digest.to_proto(), function=function.value) == []
    assert (await client.read(digest.to_proto(), function=function.value)).responses[0].data == b"there"


@pytest.mark.parametrize("function", [4, 7, 99], ids=["VSO", "MURMUR3", "unheard of"])
async def test_functions_that_are_not_supported_are_refused(client: Client, function: int) -> None:
    with pytest.raises(MalformedRequest, match=f"digest function {function}"):
        await client.find_missing(function=function)


async def test_an_unknown_instance_is_refused_and_the_known_ones_are_named(client: Client) -> None:
    with pytest.raises(MalformedRequest, match="'nobody'; this server has 'main', ''"):
        await client.find_missing(instance_name="nobody")


async def test_an_identity_that_may_not_read_is_refused(client: Client) -> None:
    client.context = RequestContext(identity=Identity(may_read=False))
    with pytest.raises(NotAllowed):
        await client.find_missing()
    with pytest.raises(NotAllowed):
        await client.update()
    with pytest.raises(NotAllowed):
        await client.read()


@FUNCTION
async def test_42_a_batch_is_written_and_read_back(client: Client, function: DigestFunction) -> None:
    entries = [entry(blob, function=function) for blob in BLOBS]
    assert await client.codes(*entries, function=function.value) == [Code.OK] * 3
    response = await client.read(*[e.digest for e in entries], function=function.value)
    assert [r.data for r in response.responses] == BLOBS


async def test_42_an_empty_batch_is_answered(client: Client) -> None:
    assert await client.update() == []
    assert list((await client.read()).responses) == []


async def test_42_each_blob_of_an_update_has_its_own_status(client: Client) -> None:
    codes = await client.codes(
        entry(b"good"), entry(b"wrong", b"WRONG"), entry(b"short", b"shor"), entry(b"fine"), entry(b"odd", compressor=9)
    )
    assert codes == [Code.OK, Code.INVALID_ARGUMENT, Code.INVALID_ARGUMENT, Code.OK, Code.INVALID_ARGUMENT]
    assert set(client.cache.memory.blobs.values()) == {b"good", b"fine"}


async def test_42_a_digest_may_be_in_an_update_several_times(client: Client) -> None:
    """buildbox-casd does that."""
    assert await client.codes(*[entry(b"again")] * 5) == [Code.OK] * 5


@pytest.mark.parametrize(
    ("datas", "codes"),
    [
        ([b"right", b"WRONG"], [Code.OK, Code.INVALID_ARGUMENT]),
        ([b"right", b"RIGHT", b"right"], [Code.OK, Code.INVALID_ARGUMENT, Code.OK]),
        ([b"right", b"longer than right"], [Code.OK, Code.INVALID_ARGUMENT]),
    ],
)
async def test_42_two_contents_for_one_digest_do_not_hurt_the_right_one(
    client: Client, datas: list[bytes], codes: list[int]
) -> None:
    assert await client.codes(*[entry(b"right", data) for data in datas]) == codes
    assert list(client.cache.memory.blobs.values()) == [b"right"]


async def test_42_a_full_store_is_the_status_of_the_blob_that_did_not_fit() -> None:
    client = Client(Cache(memory=MemoryStore(max_bytes=2_000)))
    assert await client.codes(entry(b"fits"), entry(b"x" * 5_000)) == [Code.OK, Code.RESOURCE_EXHAUSTED]


async def test_42_each_blob_of_a_read_has_its_own_status_in_the_order_asked(client: Client) -> None:
    [there] = await client.cache.add(b"there")
    lost = Digest.of(b"lost")
    response = await client.read(*protos(lost, there, lost, there))
    assert [r.digest for r in response.responses] == protos(lost, there, lost, there)
    assert [r.status.code for r in response.responses] == [Code.NOT_FOUND, Code.OK, Code.NOT_FOUND, Code.OK]
    assert [r.data for r in response.responses] == [b"", b"there", b"", b"there"]


async def test_42_a_batch_at_the_limit_is_served_and_its_reply_stays_under_4_mib(client: Client) -> None:
    half = MAX_BATCH_TOTAL_SIZE_BYTES // 2
    entries = [entry(b"x" * half), entry(b"y" * half)]
    assert await client.codes(*entries) == [Code.OK, Code.OK]
    response = await client.read(*[e.digest for e in entries])
    assert sum(len(r.data) for r in response.responses) == MAX_BATCH_TOTAL_SIZE_BYTES
    assert response.ByteSize() < MAX_MESSAGE_BYTES


@pytest.mark.parametrize("function", [DigestFunction.SHA256, DigestFunction.SHA512])
@pytest.mark.parametrize("stored", [True, False], ids=["stored", "missing"])
async def test_42_the_reply_to_many_small_blobs_stays_under_4_mib(
    client: Client, function: DigestFunction, stored: bool
) -> None:
    small = MAX_BATCH_BLOBS - 1
    large = b"x" * (MAX_BATCH_TOTAL_SIZE_BYTES - 4 * small)
    blobs = [b"%4d" % n for n in range(small)]
    digests = [Digest.of(blob, function) for blob in blobs]
    if stored:
        await client.cache.add(*blobs, function=function)
    digests += await client.cache.add(large, function=function)
    response = await client.read(*protos(*digests), function=function.value)
    assert len(response.responses) == MAX_BATCH_BLOBS
    assert response.ByteSize() < MAX_MESSAGE_BYTES


async def test_42_a_batch_over_the_limit_is_refused_as_a_whole(client: Client) -> None:
    half = MAX_BATCH_TOTAL_SIZE_BYTES // 2
    entries = [entry(b"x" * half), entry(b"y" * half), entry(b"z")]
    with pytest.raises(MalformedRequest, match=f"{MAX_BATCH_TOTAL_SIZE_BYTES} is the most"):
        await client.update(*entries)
    with pytest.raises(MalformedRequest, match=f"{MAX_BATCH_TOTAL_SIZE_BYTES} is the most"):
        await client.read(*[e.digest for e in entries])
    with pytest.raises(MalformedRequest, match=f"{MAX_BATCH_BLOBS} is the most"):
        await client.update(*[entry(b"")] * (MAX_BATCH_BLOBS + 1))
    with pytest.raises(MalformedRequest, match=f"{MAX_BATCH_BLOBS} is the most"):
        await client.read(*[entry(b"").digest] * (MAX_BATCH_BLOBS + 1))
    assert client.cache.memory.blobs == {}


async def test_sizes_that_overflow_when_added_are_refused(client: Client) -> None:
    with pytest.raises(MalformedRequest):
        await client.read(*[re_pb2.Digest(hash="a" * 64, size_bytes=2**63 - 1)] * 3)


@COMPRESSED
async def test_each_blob_of_an_update_may_be_compressed_its_own_way(client: Client, compressor: Compressor) -> None:
    entries = [entry(blob, compress(blob, compressor), compressor.value) for blob in BLOBS]
    assert await client.codes(*entries, entry(b"plain")) == [Code.OK] * 4
    assert set(client.cache.memory.blobs.values()) == {*BLOBS, b"plain"}


@COMPRESSED
async def test_compressed_blobs_of_several_mib_are_unpacked(client: Client, compressor: Compressor) -> None:
    blob = b"compressible" * 400_000
    assert await client.codes(entry(blob, compress(blob, compressor), compressor.value)) == [Code.OK]
    assert client.cache.memory.blobs == {Digest.of(blob): blob}


@COMPRESSED
async def test_50_a_compressed_blob_that_is_not_what_it_claims_is_refused_alone(
    client: Client, compressor: Compressor
) -> None:
    blob = BLOBS[1]
    packed = compress(blob, compressor)
    bomb = compress(bytes(32 << 20), compressor)
    codes = await client.codes(
        entry(b"good", compress(b"good", compressor), compressor.value),
        entry(blob, packed[:-1], compressor.value),
        entry(blob + b"x", packed, compressor.value),
        entry(blob[:-1], packed, compressor.value),
        entry(b"bomb", bomb, compressor.value),
        entry(blob[::-1], packed, compressor.value),
    )
    assert codes == [Code.OK] + [Code.INVALID_ARGUMENT] * 5
    assert list(client.cache.memory.blobs.values()) == [b"good"]


async def test_50_compressed_blobs_that_claim_to_be_huge_together_are_refused_unread(client: Client) -> None:
    claim = re_pb2.BatchUpdateBlobsRequest.Request(
        digest=re_pb2.Digest(hash="a" * 64, size_bytes=MAX_INFLATED_BATCH_BYTES // 2 + 1),
        data=b"x",
        compressor=re_pb2.Compressor.ZSTD,
    )
    with pytest.raises(MalformedRequest, match=f"{MAX_INFLATED_BATCH_BYTES} is the most"):
        await client.update(claim, claim)


@COMPRESSED
async def test_a_read_is_compressed_as_the_client_accepts_where_it_pays(client: Client, compressor: Compressor) -> None:
    digests = await client.cache.add(*BLOBS, b"compressible" * 100_000)
    response = await client.read(*protos(*digests), accept=(0, compressor.value))
    used = [compressor_of_value(r.compressor) for r in response.responses]
    # The first is too small, the third is noise.
    assert used == [Compressor.IDENTITY, compressor, Compressor.IDENTITY, compressor]
    for r, blob in zip(response.responses, [*BLOBS, b"compressible" * 100_000], strict=True):
        assert decompress(r.data, compressor_of_value(r.compressor), r.digest.size_bytes) == blob


@pytest.mark.parametrize("accept", [(), (0,), (99,)], ids=["nothing said", "identity", "unheard of"])
async def test_a_read_is_not_compressed_unless_the_client_knows_how(client: Client, accept: tuple[int, ...]) -> None:
    [digest] = await client.cache.add(b"compressible" * 1_000)
    response = await client.read(digest.to_proto(), accept=accept)
    assert (response.responses[0].compressor, response.responses[0].data) == (0, b"compressible" * 1_000)


async def test_the_fastest_of_several_compressors_is_used(client: Client) -> None:
    [digest] = await client.cache.add(b"compressible" * 1_000)
    response = await client.read(digest.to_proto(), accept=(3, 2, 1, 0))
    assert compressor_of_value(response.responses[0].compressor) is Compressor.ZSTD
