"""Uploads that outlive their stream: a Write that was cut short goes on where it ended (google.bytestream.ByteStream).

An upload is known by instance, upload id and blob. When its stream breaks it is parked for `resume_seconds`; a stream that
starts at exactly the byte where it ended takes it up again, and one that starts at 0 starts over. Nothing of an upload is
visible before it is whole, and nothing of it remains when it is given up.

Memory is bounded: uploads hold at most `max_partial_bytes` together and are at most `max_uploads`. Whoever would exceed
that makes the oldest parked uploads give way, and gets UploadsFull if that is not enough.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple, Self

from cas.digest import Digest
from cas.errors import Cancelled, OffsetMismatch, UploadsFull
from cas.partial_upload import Gathered, PartialUpload, Streamed
from cas.store import SMALL_BLOB_BYTES, BlobStore


class UploadKey(NamedTuple):
    """What a client calls an upload."""

    instance_name: str
    uuid: str
    digest: Digest


class Upload:
    """One stream's hold on an upload. It ends when another stream takes the upload up: then every use raises Cancelled."""

    __slots__ = ("ended", "key", "partial")

    def __init__(self, key: UploadKey, partial: PartialUpload) -> None:
        self.key = key
        self.partial: PartialUpload | None = partial
        """None once another stream has it."""
        self.ended = False
        """Finished or failed: there is nothing to take up."""

    @property
    def received_bytes(self) -> int:
        """How many bytes of the blob have arrived, in this stream and those before it."""
        return self._held().received_bytes

    async def append(self, data: bytes) -> None:
        """Take the next bytes of the blob; see PartialUpload.append. A failure ends the upload."""
        partial = self._held()
        try:
            await partial.append(data)
        except Exception:
            self.ended = True
            raise

    async def finish(self) -> None:
        """Make the blob visible; see PartialUpload.finish. A failure ends the upload."""
        partial = self._held()
        try:
            await partial.finish()
        finally:
            self.ended = True

    @contextmanager
    def ended_by(self, failure: type[Exception]) -> Iterator[None]:
        """A block in which a `failure` means that what has arrived is worth nothing, so that it is not kept."""
        try:
            yield
        except failure:
            self.ended = True
            raise

    def _held(self) -> PartialUpload:
        if self.partial is None:
            raise Cancelled(f"another stream goes on with upload {self.key.uuid!r} of {self.key.digest}")
        return self.partial


class Uploads:
    """All uploads that have begun and not ended."""

    def __init__(
        self,
        *,
        resume_seconds: float = 60.0,
        max_partial_bytes: int = 512 << 20,
        max_uploads: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resume_seconds = resume_seconds
        self._max_partial_bytes = max_partial_bytes
        self._max_uploads = max_uploads
        self._clock = clock
        self._tasks = asyncio.TaskGroup()
        self._watcher: asyncio.Task[None] | None = None
        self._some_parked = asyncio.Event()
        self._partial_bytes = 0
        self._running: dict[UploadKey, Upload] = {}
        """Those that can be taken up from another stream while their own still runs, or is not known to be dead."""
        self._parked: dict[UploadKey, tuple[PartialUpload, float]] = {}
        """Those without a stream and when they are given up, oldest first."""
        self._open: set[Upload] = set()
        """Every upload that has a stream."""

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._watcher = self._tasks.create_task(self._watch(), name="give up parked uploads")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        for key in list(self._parked):
            self._give_up(key)
        for upload in self._open:
            if upload.partial is not None:
                upload.partial.discard()
                upload.partial = None
        # Not told of the block's own failure: it would come out inside an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    def __len__(self) -> int:
        """How many uploads have begun and not ended."""
        return len(self._open) + len(self._parked)

    @property
    def partial_bytes(self) -> int:
        """Bytes held in memory for all of them."""
        return self._partial_bytes

    def received_bytes(self, key: UploadKey) -> int:
        """Where a stream that takes the upload up must start; 0 if there is nothing to take up."""
        if key in self._parked:
            return self._parked[key][0].received_bytes
        return self._running[key].received_bytes if key in self._running else 0

    @asynccontextmanager
    async def open(self, key: UploadKey, store: BlobStore, offset: int) -> AsyncIterator[Upload]:
        """Begin an upload into `store`, or take it up at `offset`. Left without `finish` it is parked.

        Raises OffsetMismatch if there is no upload that ended at `offset`, UploadsFull if there are too many.
        """
        upload = Upload(key, self._take_up(key, offset) if offset else self._begin(key, store))
        self._running[key] = upload
        self._open.add(upload)
        try:
            yield upload
        finally:
            self._open.discard(upload)
            registered = self._running.get(key) is upload
            if registered:
                del self._running[key]
            if upload.partial is not None:
                if registered and not upload.ended and upload.partial.received_bytes:
                    self._parked[key] = (upload.partial, self._clock() + self._resume_seconds)
                    self._some_parked.set()
                else:
                    upload.partial.discard()

    def expire(self, now: float) -> None:
        """Give up the uploads that have been parked for too long at the time `now`."""
        for key, (_partial, until) in list(self._parked.items()):
            if until > now:
                break
            self._give_up(key)

    def _begin(self, key: UploadKey, store: BlobStore) -> PartialUpload:
        """A new upload. One of the same key that is parked gives way; one that still has its stream goes on without being
        resumable, for some clients use one upload id for everything they send."""
        if key in self._parked:
            self._give_up(key)
        if len(self) >= self._max_uploads:
            if not self._parked:
                raise UploadsFull(f"{self._max_uploads} uploads are under way already")
            self._give_up(next(iter(self._parked)))
        if key.digest.size_bytes <= SMALL_BLOB_BYTES:
            return Gathered(store, key.digest, self._account)
        return Streamed(store, key.digest, self._account, self._tasks)

    def _take_up(self, key: UploadKey, offset: int) -> PartialUpload:
        """The upload of that key, which ended at `offset`; taken from its stream if that has not been found dead yet."""
        received_bytes = self.received_bytes(key)
        if received_bytes != offset:
            raise OffsetMismatch(
                f"write_offset {offset} of upload {key.uuid!r} of {key.digest}: {received_bytes} bytes have arrived"
            )
        if key in self._parked:
            return self._parked.pop(key)[0]
        upload = self._running[key]
        partial = upload.partial
        assert partial is not None, "an upload that was taken up is registered for the stream that has it"
        upload.partial = None
        return partial

    def _give_up(self, key: UploadKey) -> None:
        self._parked.pop(key)[0].discard()

    def _account(self, growth_bytes: int) -> None:
        """Count bytes held in memory. Raises UploadsFull, and counts nothing, if they may not grow by so many."""
        while self._partial_bytes + growth_bytes > self._max_partial_bytes and growth_bytes > 0:
            if not self._parked:
                raise UploadsFull(f"uploads under way hold {self._partial_bytes} of {self._max_partial_bytes} bytes")
            self._give_up(next(iter(self._parked)))
        self._partial_bytes += growth_bytes

    async def _watch(self) -> None:
        """Give up what has been parked for too long, when its time has come."""
        while True:
            while not self._parked:
                self._some_parked.clear()
                await self._some_parked.wait()
            _partial, until = next(iter(self._parked.values()))
            await asyncio.sleep(max(0.0, until - self._clock()))
            self.expire(self._clock())
