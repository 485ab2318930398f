"""One large blob on its way into or out of a DiskStore.

The methods block and run in a thread, one at a time for each object; the object keeps the descriptor, so that it is closed
once whatever happened in between.
"""

from __future__ import annotations

import errno
import os
import uuid
from contextlib import suppress

from cas.blob_directory import BlobDirectory, create, write_all
from cas.digest import Digest


class Incoming:
    """A large blob that arrives in a temporary file and gets its name when it is whole."""

    def __init__(self, directory: BlobDirectory, digest: Digest) -> None:
        self.digest = digest
        self.size_bytes = 0
        """Written so far."""
        self.reserved_bytes = 0
        """The room that the ledger has set aside for it."""
        self.published = False
        self._directory = directory
        self._path = f"{directory.incoming}/{uuid.uuid4().hex}"
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
