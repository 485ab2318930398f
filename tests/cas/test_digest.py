"""A Digest is checked where it enters; after that it is a name that can be trusted to be one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import EMPTY, MAX_SIZE_BYTES, Digest, DigestFunction, function_for, parse_digest
from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

SHA256_OF_ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

BAD_HASHES = {
    "empty": ("", "has 0 characters"),
    "one short": ("a" * 63, "has 63 characters"),
    "one long": ("a" * 65, "has 65 characters"),
    "upper case": ("A" + "a" * 63, "is not lower-case hexadecimal"),
    "not hexadecimal": ("g" + "a" * 63, "is not lower-case hexadecimal"),
    "spaces around": (" " + "a" * 62 + " ", "is not lower-case hexadecimal"),
    "line feed at the end": ("a" * 63 + "\n", "is not lower-case hexadecimal"),
    "line feed after the end": ("a" * 64 + "\n", "has 65 characters"),
    "arabic digits": ("٣" * 64, "is not lower-case hexadecimal"),
    "full-width digits": ("１" * 64, "is not lower-case hexadecimal"),
    "full-width letters": ("ａ" * 64, "is not lower-case hexadecimal"),
    "dots and slashes": ("../" * 21 + "a", "is not lower-case hexadecimal"),
    "0x in front": ("0x" + "a" * 62, "is not lower-case hexadecimal"),
    "NUL": ("a" * 63 + "\0", "is not lower-case hexadecimal"),
    "a megabyte": ("a" * (1 << 20), "has 1048576 characters"),
}


@pytest.mark.parametrize(("hash_text", "reason"), BAD_HASHES.values(), ids=BAD_HASHES.keys())
@pytest.mark.parametrize("function", [None, DigestFunction.SHA256, DigestFunction.BLAKE3])
def test_a_bad_hash_is_refused(hash_text: str, reason: str, function: DigestFunction | None) -> None:
    with pytest.raises(MalformedRequest, match=reason) as caught:
        parse_digest(hash_text, 3, function)
    assert len(str(caught.value)) < 1000, "a long hash is not sent back whole"


@pytest.mark.parametrize(("hash_text", "reason"), BAD_HASHES.values(), ids=BAD_HASHES.keys())
def test_a_bad_hash_in_a_message_is_refused(hash_text: str, reason: str) -> None:
    with pytest.raises(MalformedRequest, match=reason):
        Digest.from_proto(re_pb2.Digest(hash=hash_text, size_bytes=3), DigestFunction.SHA256)


@pytest.mark.parametrize("size_bytes", [-1, -(1 << 63), 1 << 63, 1 << 70])
def test_a_size_that_is_none_is_refused(size_bytes: int) -> None:
    with pytest.raises(MalformedRequest, match=f"^digest size {size_bytes} of {SHA256_OF_ABC} "):
        parse_digest(SHA256_OF_ABC, size_bytes)


@pytest.mark.parametrize("size_bytes", [0, 1, 1 << 32, MAX_SIZE_BYTES])
def test_any_other_size_is_taken(size_bytes: int) -> None:
    assert parse_digest(SHA256_OF_ABC, size_bytes) == Digest(SHA256_OF_ABC, size_bytes)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (32, DigestFunction.MD5),
        (40, DigestFunction.SHA1),
        (64, DigestFunction.SHA256),
        (96, DigestFunction.SHA384),
        (128, DigestFunction.SHA512),
    ],
)
def test_without_a_function_the_length_tells_it(length: int, expected: DigestFunction) -> None:
    assert parse_digest("0" * length, 3).function is expected


@pytest.mark.parametrize("function", [DigestFunction.BLAKE3, DigestFunction.SHA256TREE])
def test_the_function_named_wins_over_the_length(function: DigestFunction) -> None:
    assert parse_digest("0" * 64, 3, function).function is function


@pytest.mark.parametrize("function", DigestFunction)
def test_a_hash_of_another_length_than_the_function_named_gives_is_refused(function: DigestFunction) -> None:
    other_length = 40 if function.hash_length != 40 else 64

    with pytest.raises(MalformedRequest, match=f"{function.name} gives {function.hash_length}$"):
        parse_digest("0" * other_length, 3, function)


@pytest.mark.parametrize("function", DigestFunction)
@given(data=st.binary(max_size=2000))
def test_a_digest_survives_the_wire(function: DigestFunction, data: bytes) -> None:
    digest = Digest.of(data, function)
    received = re_pb2.Digest.FromString(digest.to_proto().SerializeToString())

    assert Digest.from_proto(received, function) == digest
    assert digest.size_bytes == len(data)


def test_the_function_and_the_size_are_part_of_the_name() -> None:
    digests = {
        Digest("0" * 64, 3),
        Digest("0" * 64, 4),
        Digest("0" * 64, 3, DigestFunction.BLAKE3),
        Digest("0" * 64, 3, DigestFunction.SHA256TREE),
    }

    assert len(digests) == 4
    assert Digest("0" * 64, 3, DigestFunction.SHA256) in digests


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (DigestFunction.SHA256, f"blobs/{SHA256_OF_ABC}/3"),
        (DigestFunction.SHA1, "blobs/a9993e364706816aba3e25717850c26c9cd0d89d/3"),
        (DigestFunction.MD5, "blobs/900150983cd24fb0d6963f7d28e17f72/3"),
        (DigestFunction.GITSHA1, "blobs/gitsha1/f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f/3"),
        (DigestFunction.SHA256TREE, f"blobs/sha256tree/{SHA256_OF_ABC}/3"),
        (DigestFunction.BLAKE3, "blobs/blake3/6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85/3"),
    ],
)
def test_the_resource_name_spells_the_function_where_the_length_does_not_tell(
    function: DigestFunction, expected: str
) -> None:
    assert Digest.of(b"abc", function).blob_name() == expected


def test_people_read_the_function_unless_it_is_the_usual_one() -> None:
    assert str(Digest.of(b"abc")) == f"{SHA256_OF_ABC}/3"
    assert str(Digest.of(b"abc", DigestFunction.SHA1)) == "sha1:a9993e364706816aba3e25717850c26c9cd0d89d/3"


def test_a_request_without_a_function_leaves_it_to_the_length() -> None:
    assert function_for(re_pb2.DigestFunction.UNKNOWN) is None


@pytest.mark.parametrize("function", DigestFunction)
def test_a_request_may_name_any_function_known_here(function: DigestFunction) -> None:
    assert function_for(function.value) is function


@pytest.mark.parametrize("value", [re_pb2.DigestFunction.VSO, re_pb2.DigestFunction.MURMUR3, 11, -1, (1 << 31) - 1])
def test_a_request_with_another_function_is_refused(value: int) -> None:
    with pytest.raises(MalformedRequest, match=f"^digest function {value} is not supported$"):
        function_for(value)


@pytest.mark.parametrize("function", DigestFunction)
def test_every_function_has_its_empty_blob(function: DigestFunction) -> None:
    assert EMPTY[function] == Digest.of(b"", function)
    assert EMPTY[function].size_bytes == 0
