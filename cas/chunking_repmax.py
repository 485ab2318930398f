"""RepMaxCDC: cuts at the position whose Gear hash is the largest (REAPI, RepMaxCdcParams).

From where the next chunk may end, at the minimum, up to the horizon, the position with the largest hash is to be a cut,
the first one if there are several. If it is too far away for one chunk of less than twice the minimum, the search is
repeated among the positions that leave room for a chunk before it. Every chunk then has at least the minimum and less than
twice that, the last one included, unless the stream itself is shorter.

Each byte is hashed once as it comes; what is kept are the largest hashes of spans of positions. A span is hashed again
when its exact position is asked for.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cas.chunking_gear import BLOCK_BYTES, WINDOW_BYTES, GearHasher, Hashes

SPAN_BYTES: Final = 1 << 10
"""How many positions have one largest hash kept; a divisor of BLOCK_BYTES."""


class RepMaxCdc:
    """Cuts one stream; a Chunker. Positions count bytes from the start of the stream."""

    def __init__(self, min_bytes: int, horizon_bytes: int) -> None:
        """Raises ValueError for a minimum below WINDOW_BYTES and for a negative horizon."""
        if min_bytes < WINDOW_BYTES:
            raise ValueError(f"min_bytes is {min_bytes}; expected at least {WINDOW_BYTES}")
        if horizon_bytes < 0:
            raise ValueError(f"horizon_bytes is {horizon_bytes}; expected at least 0")
        self._min_bytes = min_bytes
        self._needed_bytes = 2 * min_bytes + horizon_bytes
        self._gear = GearHasher()
        self._rest = bytearray()
        """The bytes from `_start` on."""
        self._start = 0
        """The position where the next chunk starts."""
        self._first_span = _first_span(0)
        """The number of the span that `_spans` starts with."""
        self._spans: Hashes = np.zeros(0, dtype=np.uint64)
        """The largest hash of each span. Span n has the positions from n * SPAN_BYTES on; the hash of a position is that
        of the bytes before it."""

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        self._hash_spans()
        chunks = []
        while len(self._rest) >= self._needed_bytes:
            chunks.append(self._take(self._chunk_bytes(self._needed_bytes)))
        return chunks

    def finish(self) -> list[bytes]:
        chunks = []
        while self._rest:
            chunks.append(self._take(self._chunk_bytes(min(len(self._rest), self._needed_bytes))))
        return chunks

    def _take(self, size_bytes: int) -> bytes:
        chunk = bytes(memoryview(self._rest)[:size_bytes])
        del self._rest[:size_bytes]
        self._start += size_bytes
        first_span = _first_span(self._start)
        self._spans = self._spans[first_span - self._first_span :]
        self._first_span = first_span
        return chunk

    def _chunk_bytes(self, seen_bytes: int) -> int:
        """How long the next chunk is, decided from the next `seen_bytes`."""
        if seen_bytes < 2 * self._min_bytes:
            return seen_bytes
        earliest = self._start + self._min_bytes
        latest = self._start + seen_bytes - self._min_bytes
        while True:
            best = self._largest(earliest, latest)
            if best - earliest < self._min_bytes:
                return best - self._start
            latest = best - self._min_bytes

    def _largest(self, earliest: int, latest: int) -> int:
        """The first position among these, both included, that has the largest hash."""
        end = latest + 1
        whole = range(-(-earliest // SPAN_BYTES), min(end // SPAN_BYTES, self._first_span + len(self._spans)))
        if not whole:
            return self._search(earliest, end)[1]
        found = [self._search(earliest, whole.start * SPAN_BYTES)] if earliest < whole.start * SPAN_BYTES else []
        spans = self._spans[whole.start - self._first_span : whole.stop - self._first_span]
        place = int(spans.argmax())
        span = whole.start + place
        if not found or int(spans[place]) > found[0][0]:
            found.append(self._search(span * SPAN_BYTES, (span + 1) * SPAN_BYTES))
        if whole.stop * SPAN_BYTES < end:
            found.append(self._search(whole.stop * SPAN_BYTES, end))
        # The first of those that are equal: they are in the order of their positions.
        return max(found, key=_hash)[1]

    def _search(self, start: int, end: int) -> tuple[int, int]:
        """The largest hash of the positions from `start` to before `end`, and the first that has it."""
        found = []
        for block in range(start, end, BLOCK_BYTES):
            hashes = self._hashes(block, min(block + BLOCK_BYTES, end))
            place = int(hashes.argmax())
            found.append((int(hashes[place]), block + place))
        return max(found, key=_hash)

    def _hashes(self, start: int, end: int) -> Hashes:
        """The hashes of at most BLOCK_BYTES positions, each of the WINDOW_BYTES bytes before it, which are in `_rest`."""
        offset = start - self._start
        with memoryview(self._rest) as rest, rest[offset - WINDOW_BYTES : offset + end - start - 1] as data:
            return self._gear.hashes(data)[WINDOW_BYTES - 1 :]

    def _hash_spans(self) -> None:
        """Keep the largest hash of every span whose bytes have come."""
        end = self._start + len(self._rest)
        position = (self._first_span + len(self._spans)) * SPAN_BYTES
        found = [self._spans]
        while (stop := min(position + BLOCK_BYTES, end // SPAN_BYTES * SPAN_BYTES)) > position:
            found.append(self._hashes(position, stop).reshape(-1, SPAN_BYTES).max(axis=1))
            position = stop
        self._spans = np.concatenate(found)


def _hash(hash_and_position: tuple[int, int]) -> int:
    return hash_and_position[0]


def _first_span(start: int) -> int:
    """The first span that lies behind a whole window in a chunk from `start` on: no cut is looked for before it."""
    return -(-(start + WINDOW_BYTES) // SPAN_BYTES)
