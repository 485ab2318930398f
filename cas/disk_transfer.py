"""One large blob on its way into or out of a DiskStore.

The methods block and run in a thread, one at a time for each object; the object keeps the descriptor, so that it is closed
once whatever happened in between.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final

from cas.blob_directory import BlobDirectory, create, write_all
from cas.cancellation import in_thread
from cas.digest import Digest
from cas.errors import BlobNotFound, DigestMismatch
from cas.store import CHUNK_BYTES

INLINE_BYTES: Final = 128 << 10
"""Batches up to this size are moved on the event loop: about 0.1 ms, as much as the hop to a thread."""
INLINE_BLOBS: Final = 4
"""Files that may be created on the event loop in one go, at 0.06 to 0.3 ms each, or removed, or read, which costs less."""


class Incoming:
    """A large blob that arrives in a temporary file and gets its name when it is whole."""

    def __init__(self, directory: BlobDirectory, digest: Digest, incoming: str | None = None) -> None:
        """`incoming` is where the temporary file is made, if not in the directory's own place for them."""
        self.digest = digest
        self.size_bytes = 0
        """Written so far."""
        self.reserved_bytes = 0
        """The room that the ledger has set aside for it."""
        self.published = False
        self._directory = directory
        self._path = f"{incoming or directory.incoming}/{uuid.uuid4().hex}"
        self._descriptor = -1

    def write(self, victims: list[Digest], data: bytearray) -> None:
        """Remove the files of `victims`, then write the next piece. Raises OSError."""
        self._directory.remove(victims)
        if self._descriptor < 0:
            self._descriptor = create(self._path)
        write_all(self._descriptor, data)
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Wait until the bytes are on the disk. Raises OSError."""
        os.fsync(self._descriptor)

    def publish(self) -> None:
        """Give the file its name. Raises OSError."""
        self._directory.publish(self._path, self.digest)
        self.published = True

    def discard(self) -> None:
        """Close the file, and remove it unless it has been published."""
        if self._descriptor < 0:
            return
        os.close(self._descriptor)
        self._descriptor = -1
        if not self.published:
            with suppress(FileNotFoundError):
                os.unlink(self._path)


class Outgoing:
    """A blob that is read in pieces from an open file, which stays readable when the store forgets the blob."""

    def __init__(self, directory: BlobDirectory, digest: Digest) -> None:
        self.digest = digest
        self.piece = b""
        """What the last read gave."""
        self._directory = directory
        self._descriptor = -1

    def open(self, start: int, end: int) -> bool:
        """Open the file and read its first piece; False if the file is not whole."""
        descriptor = self._directory.open(self.digest)
        if descriptor is None:
            return False
        self._descriptor = descriptor
        return self.read(start, end)

    def read(self, start: int, end: int) -> bool:
        """Read the bytes from `start` up to `end` into `piece`; False if the file has become shorter or unreadable."""
        self.piece = b""
        while len(self.piece) < end - start:
            try:
                more = os.pread(self._descriptor, end - start - len(self.piece), start + len(self.piece))
            except OSError as reason:
                if reason.errno != errno.EIO:
                    raise
                return False
            if not more:
                return False
            self.piece += more
        return True

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


async def pieces_of(
    directory: BlobDirectory,
    digest: Digest,
    start: int,
    end: int,
    threads: Executor,
    lose: Callable[[], Awaitable[None]],
) -> AsyncGenerator[bytes, None]:
    """The bytes of a blob's file from `start` to `end` in pieces of CHUNK_BYTES, after an empty one that says that the file
    is open. Raises BlobNotFound, after `lose`, where the file is not whole."""
    inline = end - start <= INLINE_BYTES
    outgoing = Outgoing(directory, digest)
    try:
        first = min(end, start + CHUNK_BYTES)
        found = outgoing.open(start, first) if inline else await in_thread(threads, outgoing.open, start, first)
        if found:
            yield b""
            if start < end:
                yield outgoing.piece
            position = first
            while position < end and found:
                following = min(end, position + CHUNK_BYTES)
                found = await in_thread(threads, outgoing.read, position, following)
                if found:
                    yield outgoing.piece
                position = following
        if not found:
            await lose()
            raise BlobNotFound(digest)
    finally:
        outgoing.close()


async def measured(digest: Digest, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """`chunks`, raising DigestMismatch as soon as they are more bytes than `digest` says, and if they end with fewer."""
    size_bytes = 0
    async for chunk in chunks:
        size_bytes += len(chunk)
        if size_bytes > digest.size_bytes:
            raise DigestMismatch(digest, f"at least {size_bytes} bytes")
        yield chunk
        del chunk  # or it would stay in memory for as long as a slow client takes to send the next
    if size_bytes != digest.size_bytes:
        raise DigestMismatch(digest, f"{size_bytes} bytes")
