"""The bytes of one upload that has begun and not ended, on their way into a store.

Two kinds, by the size that the digest claims. `Gathered` keeps a small blob in memory until it is whole. `Streamed` runs
the store's `put` in a task of its own, so that a client whose stream broke finds it waiting for the rest: the bytes are
written once, however often the stream breaks.

Both take bytes without awaiting and wait for room afterwards. A stream that is cut off in the middle of `append` has
therefore either delivered a message or not, and `received_bytes` says which.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final, Protocol

from cas.digest import Digest
from cas.errors import DigestMismatch, Unavailable
from cas.store import CHUNK_BYTES, BlobStore

READY_CHUNKS: Final = 1
"""Whole pieces that wait for the store before the client has to: one, so that the store never waits for the network."""

Account = Callable[[int], None]
"""Told by how many bytes the memory held grows or shrinks; raises UploadsFull, and counts nothing, if it may not grow."""


class PartialUpload(Protocol):
    """An upload in the making."""

    digest: Digest
    received_bytes: int
    """How many bytes of the blob have arrived, which is where the next ones go."""

    async def append(self, data: bytes) -> None:
        """Take the next bytes, and wait until there is room for more. Raises DigestMismatch as soon as there are more
        bytes than the digest says, UploadsFull, and what the store raises."""
        ...

    async def finish(self) -> None:
        """Make the blob visible. Raises DigestMismatch if bytes are lacking, and what the store raises."""
        ...

    def discard(self) -> None:
        """Forget everything; nothing remains in the store."""
        ...


class Gathered:
    """A small blob, whole in memory before the store sees it."""

    def __init__(self, store: BlobStore, digest: Digest, account: Account) -> None:
        self.digest = digest
        self.received_bytes = 0
        self._store = store
        self._account = account
        self._parts: list[bytes] = []

    async def append(self, data: bytes) -> None:
        check_room(self, data)
        if not data:
            return  # a million empty messages are not to leave a trace
        self._account(len(data))
        self._parts.append(data)
        self.received_bytes += len(data)

    async def finish(self) -> None:
        check_whole(self)
        blob = b"".join(self._parts)
        failures = await self._store.write_many([(self.digest, blob)])
        if self.digest in failures:
            raise failures[self.digest]

    def discard(self) -> None:
        self._account(-sum(map(len, self._parts)))
        self._parts.clear()
        self.received_bytes = 0


class Streamed:
    """A large blob on its way into the store, in pieces of CHUNK_BYTES whatever the client's messages measure."""

    def __init__(self, store: BlobStore, digest: Digest, account: Account, tasks: asyncio.TaskGroup) -> None:
        self.digest = digest
        self.received_bytes = 0
        self._account = account
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self._ready: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()
        self._ended = False
        self._stored = asyncio.Event()
        self._failure: Exception | None = None
        self._task = tasks.create_task(self._put(store), name=f"put {digest}")

    async def append(self, data: bytes) -> None:
        check_room(self, data)
        self._check_store()
        if not data:
            return
        if self._stored.is_set():
            self.received_bytes += len(data)
            return  # the store had the blob from elsewhere and stopped reading
        self._account(len(data))
        self.received_bytes += len(data)
        self._parts.append(data)
        self._parts_bytes += len(data)
        if self._parts_bytes < CHUNK_BYTES:
            return
        joined = b"".join(self._parts)
        whole = len(joined) - len(joined) % CHUNK_BYTES
        self._ready.extend(joined[start : start + CHUNK_BYTES] for start in range(0, whole, CHUNK_BYTES))
        self._parts = [joined[whole:]]
        self._parts_bytes = len(joined) - whole
        self._arrived.set()
        while len(self._ready) > READY_CHUNKS and not self._stored.is_set():
            self._taken.clear()
            await self._taken.wait()
        self._check_store()

    async def finish(self) -> None:
        check_whole(self)
        if self._parts_bytes:
            self._ready.append(b"".join(self._parts))
            self._parts, self._parts_bytes = [], 0
        self._ended = True
        self._arrived.set()
        # Cut off here, the put goes on: it lacks nothing any more, and the client who asks again finds the blob.
        await self._stored.wait()
        self._check_store()

    def discard(self) -> None:
        if not self._ended and not self._stored.is_set():
            self._failure = Unavailable(f"the upload of {self.digest} was given up")
            self._task.cancel()
            self._release()

    def _check_store(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _put(self, store: BlobStore) -> None:
        try:
            async with aclosing(self._chunks()) as chunks:
                await store.put(self.digest, chunks)
        except Exception as failure:  # noqa: BLE001 - not swallowed: append and finish raise it where the client hears of it
            self._failure = failure
        finally:
            self._stored.set()
            self._taken.set()
            self._release()

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        while True:
            while self._ready:
                chunk = self._ready.popleft()
                self._account(-len(chunk))
                self._taken.set()
                yield chunk
                del chunk  # no longer counted, so no longer held
            if self._ended:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def _release(self) -> None:
        self._account(-self._parts_bytes - sum(map(len, self._ready)))
        self._parts, self._parts_bytes = [], 0
        self._ready.clear()


def check_room(upload: PartialUpload, data: bytes) -> None:
    """Raises DigestMismatch if `data` makes the upload longer than its digest says."""
    if upload.received_bytes + len(data) > upload.digest.size_bytes:
        raise DigestMismatch(upload.digest, f"at least {upload.received_bytes + len(data)} bytes")


def check_whole(upload: PartialUpload) -> None:
    """Raises DigestMismatch if the upload is shorter than its digest says."""
    if upload.received_bytes != upload.digest.size_bytes:
        raise DigestMismatch(upload.digest, f"{upload.received_bytes} bytes")
