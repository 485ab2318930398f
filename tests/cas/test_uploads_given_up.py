"""When unfinished uploads are given up, and the bounds on them (behaviours 48, 55)."""

from __future__ import annotations

import asyncio

import pytest

from cas.errors import Cancelled, Code, OffsetMismatch, Unavailable, UploadsFull
from cas.store import CHUNK_BYTES
from cas.uploads import Uploads
from tests.cas.uploading import BOTH, LARGE, SMALL, Clock, Watched, guarded, key_of


@pytest.fixture
def store() -> Watched:
    return Watched()


@BOTH
async def test_a_parked_upload_is_given_up_when_its_time_is_over(store: Watched, blob: bytes) -> None:
    """Behaviour 48: what a client is told it may resume is there for the time promised, not for ever."""
    clock = Clock()
    async with guarded(Uploads(resume_seconds=60, clock=clock)) as uploads:
        key = key_of(blob)
        async with uploads.open(key, store, 0) as upload:
            await upload.append(blob[:900])
        uploads.expire(clock.now + 59.9)
        assert uploads.received_bytes(key) == 900
        uploads.expire(clock.now + 60)
        assert (uploads.received_bytes(key), len(uploads), uploads.partial_bytes) == (0, 0, 0)
        with pytest.raises(OffsetMismatch):
            async with uploads.open(key, store, 900):
                pass
    assert store.blobs == {}


async def test_giving_up_cancels_the_put(store: Watched) -> None:
    clock = Clock()
    async with guarded(Uploads(clock=clock)) as uploads:
        async with uploads.open(key_of(LARGE), store, 0) as upload:
            await upload.append(LARGE[: CHUNK_BYTES + 5])
            await store.started.wait()
        uploads.expire(clock.now + 60)
        await store.ended.wait()
    assert store.blobs == {}


async def test_parked_uploads_are_given_up_without_being_asked(store: Watched) -> None:
    async with guarded(Uploads(resume_seconds=0)) as uploads:
        async with uploads.open(key_of(LARGE), store, 0) as upload:
            await upload.append(LARGE[: CHUNK_BYTES + 5])
            await store.started.wait()
        await store.ended.wait()
        assert len(uploads) == 0


async def test_time_starts_anew_with_every_break(store: Watched) -> None:
    clock = Clock()
    async with guarded(Uploads(resume_seconds=60, clock=clock)) as uploads:
        for received in range(5):
            async with uploads.open(key_of(SMALL), store, received) as upload:
                await upload.append(SMALL[received : received + 1])
            clock.now += 50
            uploads.expire(clock.now)
        assert uploads.received_bytes(key_of(SMALL)) == 5


async def test_an_upload_of_which_nothing_arrived_is_not_kept(store: Watched) -> None:
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(LARGE), store, 0):
            await store.started.wait()
        assert len(uploads) == 0
        await store.ended.wait()


async def test_too_much_memory_is_refused_with_the_time_to_come_back(store: Watched) -> None:
    """Behaviour 55."""
    async with guarded(Uploads(max_partial_bytes=1_500)) as uploads:
        async with uploads.open(key_of(SMALL, "a"), store, 0) as first:
            await first.append(SMALL)
            with pytest.raises(UploadsFull) as refused:
                async with uploads.open(key_of(SMALL, "b"), store, 0) as second:
                    await second.append(SMALL)
            await first.finish()
        assert refused.value.to_proto().code == Code.RESOURCE_EXHAUSTED
        assert "RetryInfo" in refused.value.to_proto().details[0].type_url
        assert uploads.partial_bytes == 0


async def test_parked_uploads_give_way_to_those_that_run(store: Watched) -> None:
    async with guarded(Uploads(max_partial_bytes=2_500)) as uploads:
        for uuid in "ab":
            async with uploads.open(key_of(SMALL, uuid), store, 0) as upload:
                await upload.append(SMALL[:900])
        async with uploads.open(key_of(SMALL, "c"), store, 0) as upload:
            await upload.append(SMALL)
            assert uploads.received_bytes(key_of(SMALL, "a")) == 0
            assert uploads.received_bytes(key_of(SMALL, "b")) == 900
            await upload.finish()


async def test_too_many_uploads_are_refused_unless_some_are_parked(store: Watched) -> None:
    """Behaviour 55."""
    async with guarded(Uploads(max_uploads=2)) as uploads:
        async with uploads.open(key_of(SMALL, "a"), store, 0) as upload:
            await upload.append(SMALL[:5])
        async with uploads.open(key_of(SMALL, "b"), store, 0), uploads.open(key_of(SMALL, "c"), store, 0):
            assert uploads.received_bytes(key_of(SMALL, "a")) == 0
            with pytest.raises(UploadsFull):
                async with uploads.open(key_of(SMALL, "d"), store, 0):
                    pass
        assert len(uploads) == 0


@BOTH
async def test_a_server_that_stops_leaves_nothing_of_a_running_upload(store: Watched, blob: bytes) -> None:
    async with asyncio.timeout(10):
        async with Uploads() as uploads:
            stream = uploads.open(key_of(blob), store, 0)
            upload = await stream.__aenter__()
            await upload.append(blob[:-1])
        with pytest.raises((Cancelled, Unavailable)):
            await upload.append(blob[-1:])
        await stream.__aexit__(None, None, None)
    assert (store.blobs, len(uploads), uploads.partial_bytes) == ({}, 0, 0)
