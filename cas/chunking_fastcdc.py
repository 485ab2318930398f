"""FastCDC 2020: cuts at the first position whose Gear hash has zeros in certain bits (REAPI, FastCdc2020Params).

The first bytes of a chunk, up to the minimum, are skipped: the hash begins there, with nothing before. Up to the average
more bits must be zero than after it, by twice the normalisation level, so that most chunks come close to the average. At
the maximum the chunk is cut wherever that is.

The paper's loop takes two bytes at a time, and the implementations that REAPI names round the bounds down to even numbers
on the way. That is visible in where they cut, and done here as well.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from cas.chunking_gear import BLOCK_BYTES, WINDOW_BYTES, GearHasher, Hashes

NORMALIZATION: Final = 2
"""REAPI, FastCdc2020Params: this level and no other."""

MASKS: Final = {
    6: 0x0000000001803110,
    7: 0x0000000018035100,
    8: 0x0000001800035300,
    9: 0x0000019000353000,
    10: 0x0000590003530000,
    11: 0x0000D90003530000,
    12: 0x0000D90103530000,
    13: 0x0000D90303530000,
    14: 0x0000D90313530000,
    15: 0x0000D90F03530000,
    16: 0x0000D90303537000,
    17: 0x0000D90703537000,
    18: 0x0000D90707537000,
    19: 0x0000D91707537000,
    20: 0x0000D91747537000,
    21: 0x0000D91767537000,
    22: 0x0000D93767537000,
    23: 0x0000D93777537000,
    24: 0x0000D93777577000,
}
"""The bits that must be zero, for chunks of 2 to the power of the key (the paper's reference implementation). None is
above bit 47: only the last 48 bytes count."""


class FastCdc:
    """Cuts one stream; a Chunker."""

    def __init__(
        self, average_bytes: int, *, min_bytes: int | None = None, max_bytes: int | None = None, seed: int = 0
    ) -> None:
        """Without `min_bytes` and `max_bytes` they are a quarter and four times the average, as REAPI wants them.

        Raises ValueError for an average that is not a power of two from 256 bytes to 4 MiB, for bounds that do not hold
        it, and for a minimum below WINDOW_BYTES.
        """
        power = average_bytes.bit_length() - 1
        if average_bytes != 1 << max(power, 0) or not 8 <= power <= 22:
            raise ValueError(f"average_bytes is {average_bytes}; expected a power of two from 256 to {1 << 22}")
        self._average_bytes = average_bytes
        self._min_bytes = average_bytes // 4 if min_bytes is None else min_bytes
        self._max_bytes = average_bytes * 4 if max_bytes is None else max_bytes
        if not WINDOW_BYTES <= self._min_bytes <= average_bytes < self._max_bytes:
            raise ValueError(
                f"min_bytes is {self._min_bytes} and max_bytes {self._max_bytes}; "
                f"expected {WINDOW_BYTES} <= min_bytes <= {average_bytes} < max_bytes"
            )
        self._gear = GearHasher(seed)
        self._strict = np.uint64(MASKS[power + NORMALIZATION])
        self._lax = np.uint64(MASKS[power - NORMALIZATION])
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        self._rest += data
        return self._cut(self._max_bytes)

    def finish(self) -> list[bytes]:
        return self._cut(1)

    def _cut(self, needed_bytes: int) -> list[bytes]:
        """The chunks up to where fewer than `needed_bytes` are left: a cut depends on as many as the maximum."""
        chunks: list[bytes] = []
        start = 0
        with memoryview(self._rest) as rest:
            while len(rest) - start >= needed_bytes:
                end = start + self._chunk_bytes(rest[start : start + self._max_bytes])
                chunks.append(bytes(rest[start:end]))
                start = end
        del self._rest[:start]
        return chunks

    def _chunk_bytes(self, data: memoryview) -> int:
        """How long the first chunk of `data` is, which has the maximum or goes to the end of the stream."""
        if len(data) <= self._min_bytes:
            return len(data)
        begin, end = self._min_bytes & ~1, len(data) & ~1
        centre = min(self._average_bytes, len(data)) & ~1
        for start in range(begin, end, BLOCK_BYTES):
            stop = min(start + BLOCK_BYTES, end)
            # The first block has nothing before it, the others the bytes that their first hashes still depend on.
            before = 0 if start == begin else WINDOW_BYTES
            hashes = self._gear.hashes(data[start - before : stop])[before:]
            strict = min(max(centre - start, 0), len(hashes))
            place = _first_zero(hashes[:strict], self._strict)
            if place == strict:
                place += _first_zero(hashes[strict:], self._lax)
            if place < len(hashes):
                return start + place
        return len(data)


def _first_zero(hashes: Hashes, mask: np.uint64) -> int:
    """The place of the first hash that has zeros in all bits of `mask`, the number of hashes if there is none."""
    if not len(hashes):
        return 0
    zeros = (hashes & mask) == 0
    place = int(zeros.argmax())
    return place if zeros[place] else len(hashes)
