"""SHA256TREE: SHA-256 over leaves of 1024 bytes, joined pairwise into a binary tree (REAPI, DigestFunction.SHA256TREE).

A blob of at most 1024 bytes has its plain SHA-256. A longer one is cut where the left part is the largest power of two
that leaves something for the right part; the hashes of both parts, 64 bytes, go through the block cipher inside SHA-256
once. There is no padding, the first state is not SHA-256's, so that no small blob can pass for a tree, and the state is
not added to the outcome.

Leaves are complete from the left, so the hash of a stream is found as in a binary counter: one pending hash for each
bit of the number of leaves seen. Memory is O(log size).

hashlib does not offer the bare cipher. It comes from the OpenSSL library that the interpreter most likely uses anyway;
without one, from `encipher_in_python`, which is many times slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import struct
from collections.abc import Callable
from functools import cache
from typing import Final

LEAF_BYTES: Final = 1024

_MASK: Final = 0xFFFFFFFF
_LIBRARIES: Final = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib")

Encipher = Callable[[tuple[int, ...], bytes], bytes]
"""The block cipher inside SHA-256: FIPS 180-4, 6.2.2, steps 1 to 3. It takes 8 words of state and a block of 64 bytes,
and gives the working variables a to h, 32 bytes."""


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

LEAF_STATE: Final = tuple(math.isqrt(prime << 64) & _MASK for prime in _PRIMES[:8])
"""Where SHA-256 starts: first 32 bits of the fractions of the square roots of the primes 2 to 19.

FIPS 180-4, 5.3.3. Only the check of a cipher against hashlib needs it."""

TREE_STATE: Final = tuple(math.isqrt(prime << 64) & _MASK for prime in _PRIMES[8:16])
"""Where the joining of two hashes starts: the same of the next eight primes, 23 to 53."""


def encipher_in_python(state: tuple[int, ...], block: bytes) -> bytes:
    """The cipher, spelled out. Raises struct.error for a block that has not 64 bytes."""
    words = list(struct.unpack(">16I", block))
    for index in range(16, 64):
        early, late = words[index - 15], words[index - 2]
        sigma0 = (early >> 7 | early << 25) ^ (early >> 18 | early << 14) ^ early >> 3
        sigma1 = (late >> 17 | late << 15) ^ (late >> 19 | late << 13) ^ late >> 10
        words.append(words[index - 16] + (sigma0 & _MASK) + words[index - 7] + (sigma1 & _MASK) & _MASK)
    a, b, c, d, e, f, g, h = state
    for constant, word in zip(_ROUNDS, words, strict=True):
        sum1 = ((e >> 6 | e << 26) ^ (e >> 11 | e << 21) ^ (e >> 25 | e << 7)) & _MASK
        first = h + sum1 + (e & f ^ ~e & g) + constant + word
        sum0 = ((a >> 2 | a << 30) ^ (a >> 13 | a << 19) ^ (a >> 22 | a << 10)) & _MASK
        second = sum0 + (a & b ^ a & c ^ b & c)
        a, b, c, d, e, f, g, h = first + second & _MASK, a, b, c, d + first & _MASK, e, f, g
    return struct.pack(">8I", a, b, c, d, e, f, g, h)


class _Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX; `state` is all that SHA256_Transform reads and writes."""

    _fields_ = (
        ("state", ctypes.c_uint32 * 8),
        ("bit_counts", ctypes.c_uint32 * 2),
        ("data", ctypes.c_uint32 * 16),
        ("buffered", ctypes.c_uint),
        ("digest_length", ctypes.c_uint),
    )


def encipher_in_libcrypto() -> Encipher | None:
    """The cipher of an OpenSSL library, None if none loads, has it, and agrees with hashlib."""
    for name in _LIBRARIES:
        try:
            # PyDLL keeps the interpreter lock: a call takes less time than letting go of it would.
            transform = ctypes.PyDLL(name).SHA256_Transform
        except (OSError, AttributeError):
            continue
        transform.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
        transform.restype = None

        def encipher(state: tuple[int, ...], block: bytes, transform: Callable[..., None] = transform) -> bytes:
            if len(block) != 64:
                raise ValueError(f"a block of {len(block)} bytes, expected 64")
            context = _Context(state)
            transform(ctypes.byref(context), block)
            # SHA256_Transform ends with adding the state that it started from (step 4); take that back.
            return struct.pack(
                ">8I", *((after - before) & _MASK for after, before in zip(context.state, state, strict=True))
            )

        # The SHA-256 of nothing is one block of padding; with step 4 it must be what hashlib says.
        outcome = struct.unpack(">8I", encipher(LEAF_STATE, b"\x80" + bytes(63)))
        with_step_4 = struct.pack(">8I", *((x + y) & _MASK for x, y in zip(outcome, LEAF_STATE, strict=True)))
        if with_step_4 == hashlib.sha256().digest():
            return encipher
    return None


@cache
def _best_encipher() -> Encipher:
    return encipher_in_libcrypto() or encipher_in_python


class Sha256Tree:
    """The SHA256TREE hash of a stream; the interface is that of hashlib's objects.

    Holds the interpreter lock while it works: each step is too short to be worth letting go.
    """

    def __init__(self, encipher: Encipher | None = None) -> None:
        self._encipher = encipher or _best_encipher()
        self._rest = b""
        """The last leaf so far. It is hashed when more bytes come, since the last leaf of a blob ends the tree."""
        self._leaves = 0
        self._pending: list[bytes] = []
        """Hashes of complete subtrees, left and largest first: one for each bit set in the number of leaves."""

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Go on with `data`."""
        view = memoryview(data).cast("B")
        if not view.nbytes:
            return
        if self._rest:
            room = LEAF_BYTES - len(self._rest)
            if view.nbytes <= room:
                self._rest += view
                return
            self._add(hashlib.sha256(self._rest + view[:room]).digest())
            view = view[room:]
        last = (view.nbytes - 1) // LEAF_BYTES * LEAF_BYTES
        for start in range(0, last, LEAF_BYTES):
            self._add(hashlib.sha256(view[start : start + LEAF_BYTES]).digest())
        self._rest = bytes(view[last:])

    def _add(self, node: bytes) -> None:
        """Take in the hash of one more full leaf that is not the last."""
        self._leaves += 1
        carries = self._leaves
        while not carries & 1:
            node = self._encipher(TREE_STATE, self._pending.pop() + node)
            carries >>= 1
        self._pending.append(node)

    def digest(self) -> bytes:
        """The hash of all bytes so far; more may follow."""
        node = hashlib.sha256(self._rest).digest()
        for left in reversed(self._pending):
            node = self._encipher(TREE_STATE, left + node)
        return node

    def hexdigest(self) -> str:
        """`digest` in lower-case hexadecimal."""
        return self.digest().hex()
