"""Blobs and action results in an object store that fails, is slow, cuts short, forgets or lies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cas.action_cache import ActionKey
from cas.action_cache_objects import ObjectActionCache
from cas.action_cache_objects import key_of as key_of_result
from cas.bucket import Bucket, BucketUnusable, ObjectNotFound
from cas.compose import Tiered, Verified
from cas.digest import Digest, DigestFunction
from cas.errors import ActionResultNotFound, BlobNotFound, DigestMismatch, Unavailable
from cas.memory import MemoryStore
from cas.objects import AT_ONCE, ObjectStore, key_of
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from tests.blobs import MIB, blob, in_chunks, read
from tests.faulty_objects import Clock, FaultyObjects

DAY = 86400.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def objects(clock: Clock) -> FaultyObjects:
    return FaultyObjects(clock)


@pytest.fixture
async def bucket(objects: FaultyObjects) -> AsyncIterator[Bucket]:
    async with Bucket(objects, "s3://test", "p/", request_seconds=5.0) as opened:
        yield opened


@pytest.fixture
def store(bucket: Bucket, clock: Clock) -> ObjectStore:
    return ObjectStore(bucket, expires_seconds=30 * DAY, trusted_seconds=3600.0, clock=clock)


def test_function_hash_and_size_are_in_the_key() -> None:
    assert key_of(Digest("ab" * 32, 7)) == f"cas/sha256/ab/{'ab' * 32}-7"
    assert key_of(Digest("ab" * 32, 7, DigestFunction.BLAKE3)) == f"cas/blake3/ab/{'ab' * 32}-7"


# Presence


async def test_a_presence_is_asked_for_once_and_trusted_for_its_time(
    store: ObjectStore, objects: FaultyObjects, clock: Clock
) -> None:
    digest, data = blob(10)
    await store.write_many([(digest, data)])
    objects.requests.clear()
    for _ in range(3):
        assert await store.find_missing([digest]) == set()
    assert objects.requests == []

    clock.now += 3601
    assert await store.find_missing([digest]) == set()
    assert objects.requests == ["HEAD"]


async def test_a_missing_blob_is_asked_for_each_time(store: ObjectStore, objects: FaultyObjects) -> None:
    digest, _ = blob(10)
    for _ in range(2):
        assert await store.find_missing([digest]) == {digest}
    assert objects.requests == ["HEAD"] * 2


async def test_many_questions_are_asked_at_once_but_not_all(store: ObjectStore, objects: FaultyObjects) -> None:
    digests = {Digest(f"{number:064x}", 1) for number in range(500)}
    assert await store.find_missing(digests) == digests
    assert 2 <= objects.most_under_way <= AT_ONCE


async def test_a_blob_past_half_of_its_time_is_made_young_before_it_is_told_present(
    store: ObjectStore, objects: FaultyObjects, clock: Clock
) -> None:
    digest, data = blob(10)
    await store.write_many([(digest, data)])
    clock.now += 14 * DAY
    await store.find_missing([digest])
    assert "COPY" not in objects.requests

    clock.now += 2 * DAY
    assert await store.find_missing([digest]) == set()

    assert objects.objects == {f"p/{key_of(digest)}": (data, clock.now)}


async def test_a_presence_is_not_trusted_beyond_half_of_the_blobs_time(
    bucket: Bucket, objects: FaultyObjects, clock: Clock
) -> None:
    store = ObjectStore(bucket, expires_seconds=DAY, trusted_seconds=DAY, clock=clock)
    digest, data = blob(10)
    await store.write_many([(digest, data)])
    clock.now += DAY / 2 + 1
    objects.requests.clear()

    assert await store.find_missing([digest]) == set()

    assert objects.requests == ["HEAD", "COPY", "COPY", "DELETE"]


async def test_a_blob_that_cannot_be_made_young_is_uploaded_again_before_it_goes(
    store: ObjectStore, objects: FaultyObjects, clock: Clock
) -> None:
    digest, data = blob(10)
    await store.write_many([(digest, data)])
    objects.breaks_copies = True
    clock.now += 16 * DAY
    assert await store.find_missing([digest]) == set()
    clock.now += 7 * DAY
    assert await store.find_missing([digest]) == {digest}


async def test_a_blob_that_someone_deleted_is_noticed_by_the_first_who_reads_it(
    store: ObjectStore, objects: FaultyObjects
) -> None:
    for size_bytes in (10, 2 * MIB):
        digest, data = blob(size_bytes)
        await store.put(digest, in_chunks(data))
        objects.objects.clear()
        with pytest.raises(BlobNotFound):
            await read(store, digest)
        assert await store.find_missing([digest]) == {digest}


# Bytes that are not the blob


@pytest.mark.parametrize("size_bytes", [10, 100_000, 3 * MIB])
@pytest.mark.parametrize("damage", ["other bytes", "cut short", "too long"])
async def test_an_object_that_is_not_the_blob_is_missing_until_it_is_written_again(
    store: ObjectStore, objects: FaultyObjects, size_bytes: int, damage: str
) -> None:
    digest, data = blob(size_bytes)
    wrong = {"other bytes": data[:-1] + bytes([data[-1] ^ 1]), "cut short": data[:-1], "too long": data + b"!"}[damage]
    objects.objects[f"p/{key_of(digest)}"] = (wrong, objects.clock())

    with pytest.raises(BlobNotFound):
        await read(store, digest)
    with pytest.raises(BlobNotFound):
        await read(store, digest, 1, 2)
    assert await store.read_many([digest]) == {}
    assert await store.find_missing([digest]) == {digest}

    await store.put(digest, in_chunks(data))
    assert await store.find_missing([digest]) == set()
    assert await read(store, digest) == data


@pytest.mark.parametrize("size_bytes", [10, 3 * MIB])
async def test_a_wrong_object_that_another_server_has_replaced_is_the_blob(
    store: ObjectStore, bucket: Bucket, objects: FaultyObjects, size_bytes: int
) -> None:
    """Clients that are told here that it is missing may upload it there, where it was seen before."""
    other = ObjectStore(bucket, clock=objects.clock)
    digest, data = blob(size_bytes)
    await other.put(digest, in_chunks(data))
    objects.objects[f"p/{key_of(digest)}"] = (b"!" + data[1:], objects.clock())
    with pytest.raises(BlobNotFound):
        await read(store, digest)
    assert await store.find_missing([digest]) == {digest}

    await other.put(digest, in_chunks(data))

    assert await read(store, digest) == data
    assert await store.find_missing([digest]) == set()


async def test_the_last_piece_of_a_wrong_blob_is_never_passed_on(store: ObjectStore, objects: FaultyObjects) -> None:
    digest, data = blob(3 * MIB)
    objects.objects[f"p/{key_of(digest)}"] = (b"!" + data[1:], objects.clock())
    got: list[int] = []

    async def count() -> None:
        async with store.open(digest) as pieces:
            async for piece in pieces:
                got.append(len(piece))

    with pytest.raises(BlobNotFound):
        await count()
    assert sum(got) == 2 * MIB


async def test_a_wrong_large_blob_gets_neither_into_the_cache_before_it_nor_to_the_end(
    store: ObjectStore, objects: FaultyObjects
) -> None:
    digest, data = blob(3 * MIB)
    objects.objects[f"p/{key_of(digest)}"] = (b"!" + data[1:], objects.clock())
    near = MemoryStore()
    async with Tiered(near, store) as tiered:
        with pytest.raises(BlobNotFound):
            await read(tiered, digest)
    assert near.blobs == {}


@pytest.mark.parametrize(("offset", "limit"), [(0, None), (MIB, None), (5, 2 * MIB)])
async def test_a_stream_that_breaks_off_is_no_end(
    store: ObjectStore, objects: FaultyObjects, offset: int, limit: int | None
) -> None:
    digest, data = blob(3 * MIB)
    await store.put(digest, in_chunks(data))
    objects.cut_bytes = MIB + 5
    with pytest.raises(Unavailable):
        await read(store, digest, offset, limit)

    objects.cut_bytes = None
    assert await read(store, digest) == data


@pytest.mark.parametrize("size_bytes", [1000, 3 * MIB])
async def test_bytes_that_are_not_what_they_claim_never_become_an_object(
    store: ObjectStore, objects: FaultyObjects, bucket: Bucket, size_bytes: int
) -> None:
    digest, data = blob(size_bytes)
    with pytest.raises(DigestMismatch):
        await Verified(store).put(digest, in_chunks(b"!" + data[1:]))
    await bucket.__aexit__()
    assert objects.objects == {}
    assert ("ABORT" in objects.requests) == (size_bytes > MIB)


# An object store that is away


@pytest.mark.parametrize("size_bytes", [10, 3 * MIB])
async def test_an_object_store_that_is_away_is_unavailable_and_nothing_is_missing(
    store: ObjectStore, objects: FaultyObjects, size_bytes: int
) -> None:
    digest, data = blob(size_bytes)
    objects.down = True
    with pytest.raises(Unavailable) as failure:
        await store.find_missing([digest])
    assert "secret" not in str(failure.value)
    with pytest.raises(Unavailable):
        await read(store, digest)
    with pytest.raises(Unavailable):
        await store.read_many([digest])
    with pytest.raises(Unavailable):
        await store.put(digest, in_chunks(data))
    objects.down = False
    assert await store.find_missing([digest]) == {digest}
    await store.put(digest, in_chunks(data))
    assert await read(store, digest) == data


async def test_a_batch_is_told_which_of_its_blobs_were_not_kept(store: ObjectStore, objects: FaultyObjects) -> None:
    digest, data = blob(10)
    objects.down = True
    failures = await store.write_many([(digest, data)])
    assert isinstance(failures[digest], Unavailable)


async def test_a_request_that_takes_too_long_is_given_up(objects: FaultyObjects) -> None:
    objects.held = asyncio.Event()
    async with Bucket(objects, "s3://test", request_seconds=0.01) as bucket:
        with pytest.raises(Unavailable):
            await bucket.head("key")
        objects.held.set()


async def test_closing_waits_for_the_requests_of_those_who_are_gone(objects: FaultyObjects) -> None:
    objects.held = asyncio.Event()
    async with asyncio.timeout(10), Bucket(objects, "s3://test") as bucket:
        asked = asyncio.create_task(bucket.head("key"))
        await objects.asked.wait()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert objects.under_way == 1
        objects.held.set()
    assert objects.under_way == 0


@pytest.mark.parametrize("request_name", ["HEAD", "GET", "PUT"])
async def test_a_bucket_that_refuses_is_named_with_the_request_at_the_start(
    objects: FaultyObjects, bucket: Bucket, request_name: str
) -> None:
    await bucket.check()
    objects.refused = {request_name}
    with pytest.raises(BucketUnusable, match=f"s3://test refuses {request_name}.*lacked privileges"):
        await bucket.check()


async def test_a_bucket_that_does_not_answer_is_named_at_the_start(objects: FaultyObjects, bucket: Bucket) -> None:
    objects.down = True
    with pytest.raises(BucketUnusable, match=r"s3://test does not answer HEAD: error sending request$"):
        await bucket.check()


async def test_a_bucket_that_is_gone_is_unavailable_to_those_who_write(
    store: ObjectStore, objects: FaultyObjects
) -> None:
    objects.gone = True
    for size_bytes in (10, 3 * MIB):
        digest, data = blob(size_bytes)
        with pytest.raises(Unavailable):
            await store.put(digest, in_chunks(data))


async def test_a_blob_is_young_again_though_nothing_may_be_deleted(
    store: ObjectStore, objects: FaultyObjects, clock: Clock
) -> None:
    digest, data = blob(10)
    await store.write_many([(digest, data)])
    objects.refused = {"DELETE"}
    clock.now += 16 * DAY
    assert await store.find_missing([digest]) == set()
    assert objects.objects[f"p/{key_of(digest)}"] == (data, clock.now)


# Action results


def key(name: str = "", hash_text: str = "ab" * 32) -> ActionKey:
    return ActionKey(name, Digest(hash_text, 7))


async def test_a_result_that_was_cut_short_or_moved_is_none(bucket: Bucket, objects: FaultyObjects) -> None:
    cache = ObjectActionCache(bucket)
    await cache.put(key(), re_pb2.ActionResult(exit_code=3, stdout_raw=b"x"))
    place = f"p/{key_of_result(key())}"
    encoded, _ = objects.objects[place]
    elsewhere = key(hash_text="cd" * 32)
    objects.objects[f"p/{key_of_result(elsewhere)}"] = objects.objects[place]
    with pytest.raises(ActionResultNotFound):
        await cache.get(elsewhere)
    for wrong in (b"", encoded[:-3], encoded[:32], encoded + b"x"):
        objects.objects[place] = (wrong, objects.clock())
        with pytest.raises(ActionResultNotFound):
            await cache.get(key())


async def test_a_result_that_is_used_lives_on(bucket: Bucket, objects: FaultyObjects, clock: Clock) -> None:
    cache = ObjectActionCache(bucket, expires_seconds=30 * DAY, clock=clock)
    await cache.put(key(), re_pb2.ActionResult(exit_code=3))
    clock.now += 16 * DAY
    await cache.get(key())
    assert [modified for _, modified in objects.objects.values()] == [clock.now]


def test_instance_names_do_not_share_keys_whatever_they_are_made_of() -> None:
    names = ["", "main", "a/b", "a", "../x", "hash=", "name=main", "x" * 300, "ä", "MAIN"]
    keys = {key_of_result(key(name)) for name in names}
    assert len(keys) == len(names)
    assert all(part not in ("", ".", "..") for place in keys for part in place.split("/"))
    assert all(len(place) < 300 for place in keys)


async def test_an_object_that_is_not_there_is_not_found(bucket: Bucket) -> None:
    for ask in (bucket.head("x"), bucket.get("x", None, 10), bucket.renew("x")):
        with pytest.raises(ObjectNotFound):
            await ask
