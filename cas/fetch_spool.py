"""Content of unknown size on its way into a store: hashed as it arrives, kept in memory while small, else in a file.

A store wants a blob's digest before its bytes, and a fetch knows it after the last of them.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from cas.digest import Digest, hasher
from cas.errors import StoreFull
from cas.hashing import DigestFunction, Hasher
from cas.store import CHUNK_BYTES, SMALL_BLOB_BYTES, BlobStore


class _Hash(Protocol):
    """Takes bytes in the order they have."""

    def update(self, data: bytes, /) -> object: ...


class Spool:
    """Takes bytes with `append`, then gives them to a store with `store`. Use it as a context manager.

    The file has no name in `directory`, so nothing is left of it whatever happens to the process.
    """

    def __init__(self, directory: Path, function: DigestFunction, extra_hashes: Sequence[_Hash] = ()) -> None:
        """`extra_hashes` are updated along with the one of `function`."""
        self._directory = directory
        self._function = function
        self._hasher: Hasher | None = None if function is DigestFunction.GITSHA1 else hasher(function, 0)
        self._extra = extra_hashes
        self._pending = bytearray()
        self._file: IO[bytes] | None = None
        self.size_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    async def append(self, data: bytes) -> None:
        """Take more bytes. Raises StoreFull if the disk is."""
        self.size_bytes += len(data)
        self._pending += data
        if len(self._pending) >= CHUNK_BYTES:
            await asyncio.to_thread(self._flush, True)

    async def finish(self) -> Digest:
        """The digest of everything; the extra hashes have seen all of it too."""
        return await asyncio.to_thread(self._finish)

    async def store(self, digest: Digest, store: BlobStore) -> None:
        """Put what was taken into the store, under the digest that `finish` gave. Raises what the store raises."""
        if self._file is None:
            failures = await store.write_many([(digest, bytes(self._pending))])
            if digest in failures:
                raise failures[digest]
            return
        await store.put(digest, self._chunks(self._file))

    def _flush(self, to_file: bool) -> None:
        data = bytes(self._pending)
        if self._hasher is not None:
            self._hasher.update(data)
        for extra in self._extra:
            extra.update(data)
        if not to_file:
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - closed by __exit__
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as reason:
            raise StoreFull(f"no room to keep what is fetched: {reason.strerror}") from reason
        self._pending.clear()

    def _finish(self) -> Digest:
        # What fits memory stays there: small blobs are written whole.
        self._flush(to_file=self._file is not None or len(self._pending) > SMALL_BLOB_BYTES)
        if self._hasher is None:
            self._hasher = hasher(self._function, self.size_bytes)
            if self._file is None:
                self._hasher.update(bytes(self._pending))
            else:
                self._file.seek(0)
                while data := self._file.read(CHUNK_BYTES):
                    self._hasher.update(data)
        return Digest(self._hasher.hexdigest(), self.size_bytes, self._function)

    async def _chunks(self, file: IO[bytes]) -> AsyncIterator[bytes]:
        await asyncio.to_thread(file.seek, 0)
        while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
            yield data
