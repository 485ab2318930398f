"""SHA256TREE: SHA-256 over leaves of 1024 bytes, joined pairwise into a binary tree (REAPI, DigestFunction.SHA256TREE).

A blob of at most 1024 bytes has its plain SHA-256. A longer one is cut where the left part is the largest power of two
that leaves something for the right part; the hashes of both parts, 64 bytes, go through the block cipher inside SHA-256
once. There is no padding, the first state is not SHA-256's, so that no small blob can pass for a tree, and the state is
not added to the outcome.

Leaves are complete from the left, so a stream is hashed as a binary counter counts: each level of the tree keeps at most
one hash that waits for its right neighbour. Memory is O(log size).

hashlib does not offer the bare cipher. It comes from the OpenSSL library that the interpreter most likely uses anyway;
without one, from `join_in_python`, which brings the function down to some 10 MB/s.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import struct
import sys
from array import array
from collections import deque
from collections.abc import Callable
from functools import cache
from itertools import cycle
from typing import Final

LEAF_BYTES: Final = 1024
"""The size of a leaf; REAPI's, not ours to choose."""

HASH_BYTES: Final = 32
PAIR_BYTES: Final = 2 * HASH_BYTES

_STEP_BYTES: Final = 1 << 20
"""How much is hashed before its leaves are joined: joining many pairs in one go is cheaper, and takes memory."""

_MASK: Final = 0xFFFFFFFF
_LIBRARIES: Final = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib")
_CONTEXT_BYTES: Final = 112
"""The size of OpenSSL's SHA256_CTX. It begins with the state, which is all that SHA256_Transform touches."""

Join = Callable[[bytes], bytes]
"""Joins hashes: from n pairs, 64 bytes each, to n hashes, 32 bytes each; n > 0."""


def _primes(count: int) -> list[int]:
    """The first `count` primes."""
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def _cube_root(number: int) -> int:
    """The integer part of the cube root, by bisection."""
    low, high = 0, 1 << (number.bit_length() // 3 + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**3 <= number:
            low = middle
        else:
            high = middle - 1
    return low


_PRIMES: Final = _primes(64)
_ROUNDS: Final = tuple(_cube_root(prime << 96) & _MASK for prime in _PRIMES)
"""First 32 bits of the fractions of the cube roots of the first 64 primes (FIPS 180-4, 4.2.2)."""

_STATE: Final = tuple(math.isqrt(prime << 64) & _MASK for prime in _PRIMES[8:16])
"""Where every joining starts: first 32 bits of the fractions of the square roots of the primes 23 to 53."""


def join_in_python(pairs: bytes) -> bytes:
    """The cipher spelled out: FIPS 180-4, 6.2.2, steps 1 to 3, once for each pair."""
    return b"".join(_encipher(pairs[start : start + PAIR_BYTES]) for start in range(0, len(pairs), PAIR_BYTES))


def _encipher(block: bytes) -> bytes:
    """One pair of hashes to the working variables a to h."""
    words = list(struct.unpack(">16I", block))
    for index in range(16, 64):
        early, late = words[index - 15], words[index - 2]
        sigma0 = (early >> 7 | early << 25) ^ (early >> 18 | early << 14) ^ early >> 3
        sigma1 = (late >> 17 | late << 15) ^ (late >> 19 | late << 13) ^ late >> 10
        words.append(words[index - 16] + (sigma0 & _MASK) + words[index - 7] + (sigma1 & _MASK) & _MASK)
    a, b, c, d, e, f, g, h = _STATE
    for constant, word in zip(_ROUNDS, words, strict=True):
        sum1 = ((e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)) & _MASK
        first = h + sum1 + (e & f ^ ~e & g) + constant + word
        sum0 = ((a >> 2 | a << 30) ^ (a >> 13 | a << 19) ^ (a >> 22 | a << 10)) & _MASK
        second = sum0 + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = first + second & _MASK, a, b, c, d + first & _MASK, e, f, g
    return struct.pack(">8I", a, b, c, d, e, f, g, h)


def join_in_libcrypto() -> Join | None:
    """The cipher of an OpenSSL library, None if none loads, has it, and agrees with `join_in_python`."""
    for name in _LIBRARIES:
        try:
            # PyDLL keeps the interpreter lock: a call takes less time than letting go of it would.
            transform = ctypes.PyDLL(name).SHA256_Transform
        except (OSError, AttributeError):
            continue
        transform.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
        transform.restype = None

        def join(pairs: bytes, transform: Callable[[int, int], None] = transform) -> bytes:
            count = len(pairs) // PAIR_BYTES
            states = bytearray(array("I", _STATE * count).tobytes())
            states_end = len(states)
            states += bytes(_CONTEXT_BYTES)  # so that the last context is whole, whatever the library reads of it
            blocks = bytearray(pairs)
            with_address = ctypes.c_char * 1
            state_at = ctypes.addressof(with_address.from_buffer(states))
            block_at = ctypes.addressof(with_address.from_buffer(blocks))
            deque(
                map(
                    transform,
                    range(state_at, state_at + states_end, HASH_BYTES),
                    range(block_at, block_at + len(blocks), PAIR_BYTES),
                ),
                maxlen=0,
            )
            # The library has added the first state to the outcome (step 4), which is not wanted here.
            added = array("I", bytes(states[:states_end]))
            words = array("I", [after - before & _MASK for after, before in zip(added, cycle(_STATE))])
            if sys.byteorder == "little":
                words.byteswap()
            return words.tobytes()

        probe = bytes(range(2 * PAIR_BYTES))
        if join(probe) == join_in_python(probe):
            return join
    return None


@cache
def _best_join() -> Join:
    return join_in_libcrypto() or join_in_python


class Sha256Tree:
    """The SHA256TREE hash of a stream; the interface is that of hashlib's objects.

    Holds the interpreter lock while it works: each step is too short to be worth letting go.
    """

    def __init__(self, join: Join | None = None) -> None:
        self._join = join or _best_join()
        self._rest = b""
        """The last leaf so far. It joins the others only when more bytes come, since the end of a blob is lopsided."""
        self._waiting: list[bytes] = []
        """For each level of the tree, leaves first, the hash that has no right neighbour yet, or b""."""

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Go on with `data`."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), _STEP_BYTES):
            self._take(view[start : start + _STEP_BYTES])

    def _take(self, view: memoryview) -> None:
        room = LEAF_BYTES - len(self._rest)
        if len(view) <= room:
            self._rest += view
            return
        last = room + (len(view) - room - 1) // LEAF_BYTES * LEAF_BYTES
        leaves = [hashlib.sha256(self._rest + view[:room]).digest()]
        leaves += [hashlib.sha256(view[start : start + LEAF_BYTES]).digest() for start in range(room, last, LEAF_BYTES)]
        self._rest = bytes(view[last:])
        self._grow(b"".join(leaves))

    def _grow(self, hashes: bytes) -> None:
        """Go on with the hashes of full leaves of which none is the last."""
        level = 0
        while hashes:
            if level == len(self._waiting):
                self._waiting.append(b"")
            hashes = self._waiting[level] + hashes
            paired = len(hashes) // PAIR_BYTES * PAIR_BYTES
            self._waiting[level] = hashes[paired:]
            hashes = self._join(hashes[:paired]) if paired else b""
            level += 1

    def digest(self) -> bytes:
        """The hash of all bytes so far; more may follow."""
        right = hashlib.sha256(self._rest).digest()
        for left in self._waiting:
            if left:
                right = self._join(left + right)
        return right

    def hexdigest(self) -> str:
        """`digest` in lower-case hexadecimal."""
        return self.digest().hex()
