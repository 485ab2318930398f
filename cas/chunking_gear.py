"""The Gear hash, for many positions at once.

Gear is a rolling hash of 64 bits: for each byte it is shifted left by one and the table's value of the byte is added, so
that a byte no longer counts after 64 others. The hash of a position is thus the sum of the values of the last 64 bytes,
shifted by how long ago they came. numpy adds the sums of 1, 2, 4, ... 32 bytes to those of twice as many, which takes six
steps in place of 64, and is some 30 times as fast as a loop over the bytes in Python.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Hashes: TypeAlias = npt.NDArray[np.uint64]

WINDOW_BYTES: Final = 64
"""How many bytes a hash depends on."""

BLOCK_BYTES: Final = 32 << 10
"""How many positions are hashed at once: two arrays of so many hashes fit into the cache of a processor."""


@cache
def gear_table(seed: int = 0) -> Hashes:
    """The value of each byte: half of an MD5, with the bits of `seed` flipped.

    REAPI, FastCdc2020Params and RepMaxCdcParams, "GEAR table". It says the MD5 of the byte; its test vectors, and all
    implementations that it names, take that of the byte 64 times over.
    """
    values = [
        int.from_bytes(hashlib.md5(bytes([byte]) * 64, usedforsecurity=False).digest()[:8], "big") ^ seed
        for byte in range(256)
    ]
    return np.array(values, dtype=np.uint64)


class GearHasher:
    """Hashes blocks of at most WINDOW_BYTES + BLOCK_BYTES bytes."""

    def __init__(self, seed: int = 0) -> None:
        self._table = gear_table(seed)
        # Allocated once: taking and returning 256 KiB for each block would halve the speed.
        self._hashes = np.empty(WINDOW_BYTES + BLOCK_BYTES, dtype=np.uint64)
        self._shifted = np.empty_like(self._hashes)

    def hashes(self, data: memoryview) -> Hashes:
        """The hash after each byte of `data`, of the last WINDOW_BYTES bytes of it up to there, or of all if fewer.

        The array is overwritten by the next call.
        """
        hashes = self._hashes[: len(data)]
        # No byte is outside of the table: "clip" only spares the check.
        np.take(self._table, np.frombuffer(data, dtype=np.uint8), out=hashes, mode="clip")
        step = 1
        while step < min(WINDOW_BYTES, len(data)):
            earlier = self._shifted[: len(data) - step]
            np.left_shift(hashes[:-step], np.uint64(step), out=earlier)
            np.add(hashes[step:], earlier, out=hashes[step:])
            step *= 2
        return hashes
