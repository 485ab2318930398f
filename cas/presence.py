"""Which blobs a directory surely does not hold, told to every process that shares it without a system call.

Two rows of bytes in a file that all of them map: a blob's byte is set before its file gets its name, so a byte that is not
set means that nobody has written a blob of that slot. A set one means nothing: several blobs share a slot, and bytes stay
set when blobs go. Asking the file system instead costs 2 to 5 us for each blob, and most that a build asks for are missing.

    first row    set by whoever publishes a blob
    second row   set by guests only (cas/shared_disk.py): a blob that the owner does not know may be there all the same

A byte is stored whole, so no process undoes what another one sets. The file is made anew when the owner starts and no
guest is there; it is sparse, and takes the room of the pages that are in use.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import Final

from cas.digest import Digest

SLOT_DIGITS: Final = 6
"""A slot is named by the first hexadecimal digits of the hash: 16 million slots, so that of 100,000 blobs one in 170 leads
to a needless look."""
SLOTS: Final = 16**SLOT_DIGITS


class Presence:
    """The map of one directory. Raises OSError if the file cannot be made."""

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        """`anew` forgets what was set; only for the owner, when nobody else has the file mapped."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if anew:
                os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, 2 * SLOTS)
            self._bytes = mmap.mmap(descriptor, 2 * SLOTS)
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Let the file go."""
        self._bytes.close()

    def publish(self, digests: Iterable[Digest]) -> None:
        """The owner is about to give files of `digests` their names, or has found them."""
        row = self._bytes
        for digest in digests:
            row[int(digest.hash[:SLOT_DIGITS], 16)] = 1

    def publish_as_guest(self, digests: Iterable[Digest]) -> None:
        """A guest is about to give files of `digests` their names."""
        rows = self._bytes
        for digest in digests:
            slot = int(digest.hash[:SLOT_DIGITS], 16)
            rows[slot] = rows[SLOTS + slot] = 1

    def maybe(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of `digests` that may be there; the others surely are not."""
        asked = list(digests)
        return _marked(asked, self._bytes, _slots(asked))

    def maybe_of_guests(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of `digests` that a guest may have written."""
        asked = list(digests)
        return _marked(asked, self._bytes, [SLOTS + slot for slot in _slots(asked)])


def _slots(digests: Sequence[Digest]) -> Sequence[int]:
    """The first SLOT_DIGITS of each hash as a number, all turned in one go: one by one takes twice as long."""
    padded = f"{'0' * (8 - SLOT_DIGITS)}%.{SLOT_DIGITS}s" * len(digests)
    digits = padded % tuple([digest.hash for digest in digests])
    return struct.unpack(f">{len(digests)}I", bytes.fromhex(digits))


def _marked(digests: Sequence[Digest], row: mmap.mmap, places: Sequence[int]) -> list[Digest]:
    """Those whose place is not 0, again without a step of Python for each."""
    if len(places) < 2:  # of which itemgetter would make no tuple
        return [digest for digest, place in zip(digests, places, strict=True) if row[place]]
    return list(compress(digests, itemgetter(*places)(row)))
