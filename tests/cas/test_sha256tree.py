"""SHA256TREE, against the published vectors and against its definition written down as it stands."""

from __future__ import annotations

import csv
import ctypes
import hashlib
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.sha256tree import LEAF_BYTES, PAIR_BYTES, Join, Sha256Tree, join_in_libcrypto, join_in_python

with (Path(__file__).parent / "data" / "sha256tree.csv").open(newline="") as _file:
    VECTORS = [(int(row["size_bytes"]), row["hash"]) for row in csv.DictReader(_file)]
"""Of the bytes 0 to 250, over and over, so many. Published beside the protocol."""


def counting(size_bytes: int) -> bytes:
    return (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]


def by_definition(data: bytes) -> bytes:
    """The recursive definition of DigestFunction.SHA256TREE."""
    if len(data) <= LEAF_BYTES:
        return hashlib.sha256(data).digest()
    left_bytes = 1 << ((len(data) - 1).bit_length() - 1)
    return join_in_python(by_definition(data[:left_bytes]) + by_definition(data[left_bytes:]))


def libcrypto() -> Join:
    join = join_in_libcrypto()
    assert join is not None, "no OpenSSL library found: apt-get install libssl3"
    return join


@pytest.mark.parametrize("join_of", [lambda: join_in_python, libcrypto], ids=["python", "libcrypto"])
@pytest.mark.parametrize(("size_bytes", "expected"), VECTORS)
def test_the_published_vectors_hold(size_bytes: int, expected: str, join_of: Callable[[], Join]) -> None:
    tree = Sha256Tree(join_of())
    tree.update(counting(size_bytes))

    assert tree.hexdigest() == expected


def test_all_published_vectors_are_here() -> None:
    assert len(VECTORS) == 18


@pytest.mark.parametrize("size_bytes", [0, 1, 55, 56, 63, 64, 65, 1023, 1024])
def test_up_to_one_leaf_it_is_plain_sha256(size_bytes: int) -> None:
    tree = Sha256Tree()
    tree.update(counting(size_bytes))

    assert tree.digest() == hashlib.sha256(counting(size_bytes)).digest()


@given(pairs=st.lists(st.binary(min_size=PAIR_BYTES, max_size=PAIR_BYTES), min_size=1, max_size=5))
def test_both_ways_to_join_agree(pairs: list[bytes]) -> None:
    together = b"".join(pairs)

    assert libcrypto()(together) == join_in_python(together) == b"".join(join_in_python(pair) for pair in pairs)


@given(
    leaves=st.integers(0, 20),
    extra_bytes=st.sampled_from([0, 1, 511, 1023]),
    piece_bytes=st.lists(st.sampled_from([1, 63, 1000, 1023, 1024, 1025, 2048, 3000, 5000]), min_size=1, max_size=5),
)
def test_any_cutting_gives_what_the_definition_gives(leaves: int, extra_bytes: int, piece_bytes: list[int]) -> None:
    data = counting(leaves * LEAF_BYTES + extra_bytes)
    tree = Sha256Tree()
    start, turn = 0, 0
    while start < len(data):
        size_bytes = piece_bytes[turn % len(piece_bytes)]
        # One byte at a time is for the first few only.
        size_bytes = size_bytes if size_bytes > 1 or turn < 5 else 700
        tree.update(data[start : start + size_bytes])
        start, turn = start + size_bytes, turn + 1

    assert tree.digest() == by_definition(data)


def test_asking_for_the_hash_does_not_end_it() -> None:
    data = counting(5000)
    tree = Sha256Tree()
    for start in range(0, 5000, 500):
        assert tree.digest() == by_definition(data[:start])
        tree.update(data[start : start + 500])

    assert tree.digest() == by_definition(data)


def test_one_piece_larger_than_a_step_is_hashed_whole() -> None:
    data = counting((3 << 20) + 77)
    whole, pieces = Sha256Tree(), Sha256Tree()
    whole.update(data)
    for start in range(0, len(data), 100_000):
        pieces.update(data[start : start + 100_000])

    assert whole.digest() == pieces.digest() == by_definition(data)


def test_memory_does_not_grow_with_the_stream() -> None:
    piece = bytes(1 << 16)
    tree = Sha256Tree()
    tree.update(piece)
    tracemalloc.start()
    try:
        for _ in range(256):
            tree.update(piece)
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held_bytes < 8 * 1024, "16 MiB have 16,384 leaves; one hash a level is kept"


def test_without_an_openssl_library_the_python_cipher_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "PyDLL", refuse)

    assert join_in_libcrypto() is None


def test_a_library_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_the_state(_state_at: int, _block_at: int) -> None: ...

    monkeypatch.setattr(ctypes, "PyDLL", lambda _name: SimpleNamespace(SHA256_Transform=leave_the_state))

    assert join_in_libcrypto() is None
