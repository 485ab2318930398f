"""Every digest function gives the published hashes, however the bytes come in."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.hashing import (
    DigestFunction,
    function_of_length,
    function_of_segment,
    function_of_value,
    hash_of,
    hasher,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

# What the tools of coreutils and git say of these bytes; for BLAKE3 the vectors of its authors.
KNOWN = [
    (DigestFunction.SHA256, b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (DigestFunction.SHA256, b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
    (DigestFunction.SHA1, b"", "da39a3ee5e6b4b0d3255bfef95601890afd80709"),
    (DigestFunction.SHA1, b"abc", "a9993e364706816aba3e25717850c26c9cd0d89d"),
    (DigestFunction.MD5, b"", "d41d8cd98f00b204e9800998ecf8427e"),
    (DigestFunction.MD5, b"abc", "900150983cd24fb0d6963f7d28e17f72"),
    (
        DigestFunction.SHA384,
        b"abc",
        "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
    ),
    (
        DigestFunction.SHA512,
        b"abc",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ),
    (DigestFunction.BLAKE3, b"", "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
    (DigestFunction.BLAKE3, b"\0", "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
    (
        DigestFunction.BLAKE3,
        (bytes(range(251)) * 5)[:1025],
        "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    ),
    (DigestFunction.SHA256TREE, b"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
    (
        DigestFunction.SHA256TREE,
        (bytes(range(251)) * 5)[:1025],
        "36c0998b21839ef74300b9de47d96d1f62323dc81f2b4231e98ce70cd6ffe750",
    ),
    (DigestFunction.GITSHA1, b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
    (DigestFunction.GITSHA1, b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
]


@pytest.mark.parametrize(("function", "data", "expected"), KNOWN, ids=lambda value: getattr(value, "name", None))
def test_the_hash_is_the_published_one(function: DigestFunction, data: bytes, expected: str) -> None:
    assert hash_of(data, function) == expected


def test_every_function_has_a_published_hash_to_answer_to() -> None:
    assert {function for function, _, _ in KNOWN} == set(DigestFunction)


@pytest.mark.parametrize("function", DigestFunction)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_buffer_is_hashed(
    function: DigestFunction, kind: type[bytes] | type[bytearray] | type[memoryview]
) -> None:
    data = bytes(range(256)) * 20

    assert hash_of(kind(data), function) == hash_of(data, function)


@pytest.mark.parametrize("function", DigestFunction)
@given(data=st.binary(max_size=6000), cuts=st.lists(st.integers(0, 6000), max_size=8))
def test_a_stream_hashes_as_the_whole(function: DigestFunction, data: bytes, cuts: list[int]) -> None:
    streamed = hasher(function, len(data))
    for start, end in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
        streamed.update(data[start:end])

    assert streamed.hexdigest() == hash_of(data, function)


@pytest.mark.parametrize("function", DigestFunction)
def test_a_hash_has_the_length_that_its_function_says(function: DigestFunction) -> None:
    assert len(hash_of(b"any", function)) == function.hash_length


@pytest.mark.parametrize("function", DigestFunction)
def test_numbers_are_those_of_the_protocol(function: DigestFunction) -> None:
    assert function.value == re_pb2.DigestFunction.Value.Value(function.name)
    assert function_of_value(function.value) is function


@pytest.mark.parametrize("value", [0, -1, 4, 7, 11, 1 << 31])
def test_other_numbers_are_no_function(value: int) -> None:
    assert function_of_value(value) is None


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (32, DigestFunction.MD5),
        (40, DigestFunction.SHA1),
        (64, DigestFunction.SHA256),
        (96, DigestFunction.SHA384),
        (128, DigestFunction.SHA512),
        (0, None),
        (1, None),
        (63, None),
        (65, None),
        (66, None),
    ],
)
def test_the_length_tells_the_function_that_nothing_names(length: int, expected: DigestFunction | None) -> None:
    assert function_of_length(length) is expected


def test_resource_names_spell_the_functions_that_the_length_does_not_tell() -> None:
    spelled = {function: function.resource_segment for function in DigestFunction if function.resource_segment}

    assert spelled == {
        DigestFunction.SHA256TREE: "sha256tree",
        DigestFunction.BLAKE3: "blake3",
        DigestFunction.GITSHA1: "gitsha1",
    }
    for function, segment in spelled.items():
        assert function_of_segment(segment) is function


@pytest.mark.parametrize("segment", ["", "sha256", "BLAKE3", "Blake3", "blake3 ", "md5", "unknown"])
def test_other_segments_are_no_function(segment: str) -> None:
    assert function_of_segment(segment) is None
