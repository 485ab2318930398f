"""Uploads that outlive their stream, and the bounds on them (behaviours 44, 48, 50, 55)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from cas.compose import Verified
from cas.digest import Digest
from cas.errors import Cancelled, Code, DigestMismatch, OffsetMismatch, StoreFull, Unavailable, UploadsFull
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore
from cas.uploads import UploadKey, Uploads

SMALL = b"small blob" * 100
LARGE = bytes(range(256)) * (3 * CHUNK_BYTES // 256) + b"and a bit"
BOTH = pytest.mark.parametrize("blob", [SMALL, LARGE], ids=["small", "large"])


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


class Watched(MemoryStore):
    """A store that tells how its puts go, and can be told to wait or to fail."""

    def __init__(self, max_bytes: int = 1 << 30) -> None:
        super().__init__(max_bytes)
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.failure: Exception | None = None
        self.pieces: list[int] = []

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        self.started.set()
        try:
            await self.go_on.wait()
            if self.failure is not None:
                raise self.failure
            await super().put(digest, self._watched(chunks))
        finally:
            self.ended.set()

    async def _watched(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for chunk in chunks:
            self.pieces.append(len(chunk))
            yield chunk
            await self.go_on.wait()


@pytest.fixture
def store() -> Watched:
    return Watched()


def key_of(blob: bytes, uuid: str = "u") -> UploadKey:
    return UploadKey("main", uuid, Digest.of(blob))


@asynccontextmanager
async def guarded(uploads: Uploads) -> AsyncIterator[Uploads]:
    """The uploads, within 10 seconds; in the end nothing of them may be left."""
    async with asyncio.timeout(10):
        async with uploads:
            yield uploads
        assert (len(uploads), uploads.partial_bytes) == (0, 0)


async def send(uploads: Uploads, key: UploadKey, store: BlobStore, *messages: bytes) -> None:
    """One stream from the start to finish_write."""
    async with uploads.open(key, store, 0) as upload:
        for message in messages:
            await upload.append(message)
        await upload.finish()


@BOTH
async def test_messages_of_any_size_add_up_to_the_blob(store: Watched, blob: bytes) -> None:
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(blob), Verified(store), 0) as upload:
            for start in range(0, len(blob), 16 << 10):
                await upload.append(blob[start : start + (16 << 10)])
            assert store.blobs == {}
            await upload.finish()
        assert store.blobs == {Digest.of(blob): blob}
        assert (len(uploads), uploads.partial_bytes) == (0, 0)


async def test_small_messages_reach_the_store_in_large_pieces(store: Watched) -> None:
    async with guarded(Uploads()) as uploads, uploads.open(key_of(LARGE), store, 0) as upload:
        for start in range(0, len(LARGE), 10_000):
            await upload.append(LARGE[start : start + 10_000])
        await upload.finish()
    assert store.pieces == [CHUNK_BYTES, CHUNK_BYTES, CHUNK_BYTES, len(LARGE) - 3 * CHUNK_BYTES]


async def test_one_huge_message_reaches_the_store_in_pieces(store: Watched) -> None:
    async with guarded(Uploads()) as uploads, uploads.open(key_of(LARGE), store, 0) as upload:
        await upload.append(LARGE)
        await upload.finish()
    assert max(store.pieces) == CHUNK_BYTES
    assert store.blobs[Digest.of(LARGE)] == LARGE


@BOTH
@pytest.mark.parametrize("cut", [1, 1_000, -1])
async def test_a_broken_upload_goes_on_where_it_ended(store: Watched, blob: bytes, cut: int) -> None:
    """Behaviour 44."""
    async with guarded(Uploads()) as uploads:
        key = key_of(blob)

        async def broken() -> None:
            async with uploads.open(key, Verified(store), 0) as upload:
                await upload.append(blob[:cut])
                raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await broken()
        assert store.blobs == {}
        assert uploads.received_bytes(key) == len(blob[:cut])
        async with uploads.open(key, Verified(store), len(blob[:cut])) as upload:
            await upload.append(blob[cut:])
            await upload.finish()
        assert store.blobs == {Digest.of(blob): blob}
        assert uploads.received_bytes(key) == 0


async def test_a_large_blob_is_put_once_however_often_its_stream_breaks(store: Watched) -> None:
    async with guarded(Uploads()) as uploads:
        for start in range(0, len(LARGE), 700_000):
            async with uploads.open(key_of(LARGE), store, start) as upload:
                await upload.append(LARGE[start : start + 700_000])
                if upload.received_bytes == len(LARGE):
                    await upload.finish()
        assert sum(store.pieces) == len(LARGE)
        assert store.blobs == {Digest.of(LARGE): LARGE}


@BOTH
async def test_a_stream_cut_off_while_it_waits_for_room_has_delivered_its_message(store: Watched, blob: bytes) -> None:
    store.go_on.clear()
    async with guarded(Uploads()) as uploads:
        key = key_of(blob)

        async def stream() -> None:
            async with uploads.open(key, store, 0) as upload:
                sending.set()
                await upload.append(blob[:-1])
                await asyncio.Event().wait()

        sending = asyncio.Event()
        task = asyncio.create_task(stream())
        await sending.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert uploads.received_bytes(key) == len(blob) - 1
        store.go_on.set()
        async with uploads.open(key, store, len(blob) - 1) as upload:
            await upload.append(blob[-1:])
            await upload.finish()
        assert store.blobs == {Digest.of(blob): blob}


@BOTH
@pytest.mark.parametrize("offset", [1, 4, 6, 1_000])
async def test_a_stream_that_starts_elsewhere_is_refused_and_the_upload_stays(
    store: Watched, blob: bytes, offset: int
) -> None:
    """Behaviour 44."""
    async with guarded(Uploads()) as uploads:
        key = key_of(blob)
        async with uploads.open(key, store, 0) as upload:
            await upload.append(blob[:5])
        with pytest.raises(OffsetMismatch, match="5 bytes have arrived"):
            async with uploads.open(key, store, offset):
                pass
        assert uploads.received_bytes(key) == 5


@pytest.mark.parametrize(
    "other",
    [
        UploadKey("other", "u", Digest.of(SMALL)),
        UploadKey("main", "v", Digest.of(SMALL)),
        UploadKey("main", "u", Digest.of(LARGE)),
    ],
    ids=["instance", "upload id", "blob"],
)
async def test_an_upload_is_known_by_instance_id_and_blob(store: Watched, other: UploadKey) -> None:
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(SMALL), store, 0) as upload:
            await upload.append(SMALL[:5])
        with pytest.raises(OffsetMismatch, match="0 bytes have arrived"):
            async with uploads.open(other, store, 5):
                pass


@BOTH
async def test_a_stream_that_starts_at_zero_starts_over(store: Watched, blob: bytes) -> None:
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(blob), Verified(store), 0) as upload:
            await upload.append(b"wrong" * 10)
        async with uploads.open(key_of(blob), Verified(store), 0) as upload:
            assert upload.received_bytes == 0
            await upload.append(blob)
            await upload.finish()
        assert store.blobs == {Digest.of(blob): blob}


@BOTH
async def test_a_stream_takes_an_upload_from_one_that_is_not_known_to_be_dead(store: Watched, blob: bytes) -> None:
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(blob), store, 0) as old:
            await old.append(blob[:500])
            async with uploads.open(key_of(blob), store, 500) as new:
                with pytest.raises(Cancelled, match="another stream"):
                    await old.append(blob[500:600])
                await new.append(blob[500:])
                await new.finish()
        assert store.blobs == {Digest.of(blob): blob}


@BOTH
async def test_two_streams_with_one_upload_id_from_the_start_do_not_disturb_each_other(
    store: Watched, blob: bytes
) -> None:
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(blob), store, 0) as one, uploads.open(key_of(blob), store, 0) as two:
            await one.append(blob[:500])
            await two.append(blob[:300])
            await one.append(blob[500:])
            await one.finish()
            await two.append(blob[300:])
            await two.finish()
        assert store.blobs == {Digest.of(blob): blob}


@BOTH
async def test_too_many_bytes_end_the_upload_at_once(store: Watched, blob: bytes) -> None:
    """Behaviour 50: nothing past the declared size is kept."""
    async with guarded(Uploads()) as uploads:
        with pytest.raises(DigestMismatch, match="at least"):
            await send(uploads, key_of(blob), store, blob, b"x")
        assert (len(uploads), uploads.received_bytes(key_of(blob)), store.blobs) == (0, 0, {})


@BOTH
async def test_too_few_bytes_store_nothing(store: Watched, blob: bytes) -> None:
    async with guarded(Uploads()) as uploads:
        with pytest.raises(DigestMismatch):
            await send(uploads, key_of(blob), store, blob[:-1])
        assert (len(uploads), store.blobs) == (0, {})


@BOTH
async def test_other_bytes_than_the_digest_names_store_nothing(store: Watched, blob: bytes) -> None:
    async with guarded(Uploads()) as uploads:
        with pytest.raises(DigestMismatch):
            await send(uploads, key_of(blob), Verified(store), b"x" * len(blob))
        assert (len(uploads), store.blobs) == (0, {})


@pytest.mark.parametrize("failure", [StoreFull("no room"), OSError("disk on fire")], ids=["full", "broken"])
async def test_a_store_that_fails_early_is_heard_of_while_the_client_still_sends(
    store: Watched, failure: Exception
) -> None:
    store.failure = failure
    async with guarded(Uploads()) as uploads:
        async with uploads.open(key_of(LARGE), store, 0) as upload:
            await upload.append(LARGE[:10])
            await store.ended.wait()
            with pytest.raises(type(failure)):
                await upload.append(LARGE[10:])
        assert (len(uploads), uploads.partial_bytes) == (0, 0)


async def test_a_small_blob_that_does_not_fit_fails_with_what_the_store_says() -> None:
    async with guarded(Uploads()) as uploads:
        with pytest.raises(StoreFull):
            await send(uploads, key_of(SMALL), MemoryStore(max_bytes=10), SMALL)


async def test_a_store_that_gets_the_blob_from_elsewhere_meanwhile_needs_no_more_of_it(store: Watched) -> None:
    store.go_on.clear()
    async with guarded(Uploads()) as uploads, uploads.open(key_of(LARGE), store, 0) as upload:
        await upload.append(LARGE[:10])
        await store.started.wait()
        assert await store.write_many([(Digest.of(LARGE), LARGE)]) == {}
        store.go_on.set()
        await store.ended.wait()
        await upload.append(LARGE[10:])
        await upload.finish()
    assert store.pieces == []


async def test_a_client_faster_than_the_store_waits(store: Watched) -> None:
    store.go_on.clear()
    async with guarded(Uploads()) as uploads, uploads.open(key_of(LARGE), store, 0) as upload:
        sending = asyncio.create_task(upload.append(LARGE))
        await store.started.wait()
        assert not sending.done()
        store.go_on.set()
        await sending
        await upload.finish()


async def test_a_client_that_leaves_after_finish_has_stored_the_blob_all_the_same(store: Watched) -> None:
    store.go_on.clear()
    async with guarded(Uploads()) as uploads:

        async def stream() -> None:
            async with uploads.open(key_of(LARGE), store, 0) as upload:
                for start in range(0, len(LARGE), CHUNK_BYTES // 2):
                    store.go_on.set()
                    await upload.append(LARGE[start : start + CHUNK_BYTES // 2])
                store.go_on.clear()
                finishing.set()
                await upload.finish()

        finishing = asyncio.Event()
        task = asyncio.create_task(stream())
        await finishing.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        store.go_on.set()
        await store.ended.wait()
        assert store.blobs == {Digest.of(LARGE): LARGE}


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


async def test_the_line_between_small_and_large_is_that_of_the_stores(store: Watched) -> None:
    at = b"x" * SMALL_BLOB_BYTES
    async with guarded(Uploads()) as uploads:
        for blob in (at, at + b"x"):
            async with uploads.open(key_of(blob), store, 0) as upload:
                await upload.append(blob)
                await upload.finish()
    assert sum(store.pieces) == len(at) + 1
