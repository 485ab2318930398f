"""Uploads that outlive their stream (behaviours 44, 48, 50)."""

from __future__ import annotations

import asyncio

import pytest

from cas.compose import Verified
from cas.digest import Digest
from cas.errors import Cancelled, DigestMismatch, OffsetMismatch, StoreFull
from cas.memory import MemoryStore
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES
from cas.uploads import UploadKey, Uploads
from tests.cas.uploading import BOTH, LARGE, SMALL, Watched, guarded, key_of, send


@pytest.fixture
def store() -> Watched:
    return Watched()


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


async def test_the_line_between_small_and_large_is_that_of_the_stores(store: Watched) -> None:
    at = b"x" * SMALL_BLOB_BYTES
    async with guarded(Uploads()) as uploads:
        for blob in (at, at + b"x"):
            async with uploads.open(key_of(blob), store, 0) as upload:
                await upload.append(blob)
                await upload.finish()
    assert sum(store.pieces) == len(at) + 1
