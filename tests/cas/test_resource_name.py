"""Resource names of ByteStream (behaviours 40 and 43)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.compression import Compressor
from cas.digest import Digest
from cas.errors import MalformedRequest
from cas.hashing import DigestFunction
from cas.resource_name import (
    HEADER,
    KEYWORDS,
    MAX_NAME_CHARACTERS,
    ResourceName,
    check_header,
    parse_read_name,
    parse_write_name,
)

H = "0123456789abcdef" * 4
BLOB = Digest(H, 5)
BLAKE = Digest(H, 5, DigestFunction.BLAKE3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"blobs/{H}/5", ResourceName("", BLOB)),
        (f"/blobs/{H}/5", ResourceName("", BLOB)),
        (f"main/blobs/{H}/5", ResourceName("main", BLOB)),
        (f"a/b/c/blobs/{H}/5", ResourceName("a/b/c", BLOB)),
        (f"blob/Blobs/blobs/{H}/5", ResourceName("blob/Blobs", BLOB)),
        (f"main/blobs/{H}/0", ResourceName("main", Digest(H, 0))),
        (f"main/blobs/{H}/{2**63 - 1}", ResourceName("main", Digest(H, 2**63 - 1))),
        (f"main/blobs/blake3/{H}/5", ResourceName("main", BLAKE)),
        (f"main/blobs/sha256tree/{H}/5", ResourceName("main", Digest(H, 5, DigestFunction.SHA256TREE))),
        (f"main/blobs/{H[:40]}/5", ResourceName("main", Digest(H[:40], 5, DigestFunction.SHA1))),
        (f"main/blobs/gitsha1/{H[:40]}/5", ResourceName("main", Digest(H[:40], 5, DigestFunction.GITSHA1))),
        (f"main/blobs/{H * 2}/5", ResourceName("main", Digest(H * 2, 5, DigestFunction.SHA512))),
        (f"main/compressed-blobs/zstd/{H}/5", ResourceName("main", BLOB, Compressor.ZSTD)),
        (f"compressed-blobs/deflate/blake3/{H}/5", ResourceName("", BLAKE, Compressor.DEFLATE)),
        (f"x/compressed-blobs/brotli/{H}/5", ResourceName("x", BLOB, Compressor.BROTLI)),
    ],
)
def test_a_read_names_instance_blob_and_compressor(name: str, expected: ResourceName) -> None:
    assert parse_read_name(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"uploads/u/blobs/{H}/5", ResourceName("", BLOB, uuid="u")),
        (f"/uploads/u/blobs/{H}/5", ResourceName("", BLOB, uuid="u")),
        (f"a/b/uploads/u/blobs/{H}/5", ResourceName("a/b", BLOB, uuid="u")),
        (f"main/uploads/blobs/blobs/{H}/5", ResourceName("main", BLOB, uuid="blobs")),
        (f"main/uploads/u/blobs/{H}/5/", ResourceName("main", BLOB, uuid="u")),
        (f"main/uploads/u/blobs/{H}/5/some/file/blobs/x", ResourceName("main", BLOB, uuid="u")),
        (f"main/uploads/u/blobs/blake3/{H}/5/x", ResourceName("main", BLAKE, uuid="u")),
        (f"main/uploads/{'u' * 200}/blobs/{H}/5", ResourceName("main", BLOB, uuid="u" * 200)),
        (f"main/uploads/u/compressed-blobs/zstd/{H}/5/x", ResourceName("main", BLOB, Compressor.ZSTD, "u")),
        (f"uploads/u/compressed-blobs/zstd/blake3/{H}/5", ResourceName("", BLAKE, Compressor.ZSTD, "u")),
    ],
)
def test_a_write_names_the_upload_too_and_may_go_on_after_the_size(name: str, expected: ResourceName) -> None:
    assert parse_write_name(name) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "no segment"),
        ("/", "no segment"),
        ("main", "no segment"),
        (f"main/{H}/5", "no segment"),
        ("blobs", "no hash and size"),
        (f"blobs/{H}", "no hash and size"),
        (f"blobs/blake3/{H}", "no hash and size"),
        (f"blobs/{H}/5/x", "goes on after the size"),
        (f"blobs/{H}/5/", "goes on after the size"),
        (f"blobs/{H.upper()}/5", "not lower-case hexadecimal"),
        (f"blobs/{H[:-1]}/5", "where a hash"),
        (f"blobs/{H[:-1]}\n/5", "not lower-case hexadecimal"),
        (f"blobs//{H}/5", "'' where a hash"),
        (f"blobs/{H}/", "not a decimal"),
        (f"blobs/{H}/-1", "not a decimal"),
        (f"blobs/{H}/+1", "not a decimal"),
        (f"blobs/{H}/1_0", "not a decimal"),
        (f"blobs/{H}/ 1", "not a decimal"),
        (f"blobs/{H}/1\n", "not a decimal"),
        (f"blobs/{H}/01", "not a decimal"),
        (f"blobs/{H}/0x1", "not a decimal"),
        (f"blobs/{H}/٣", "not a decimal"),
        (f"blobs/{H}/²", "not a decimal"),
        (f"blobs/{H}/{'9' * 20}", "not a decimal"),
        (f"blobs/{H}/{2**63}", "not a size"),
        (f"blobs/murmur3/{H}/5", "'murmur3' where a hash"),
        (f"blobs/blake3/{H[:40]}/5", "BLAKE3 gives 64"),
        (f"compressed-blobs/{H}/5", "compressor"),
        (f"compressed-blobs/identity/{H}/5", "compressor"),
        (f"compressed-blobs/ZSTD/{H}/5", "compressor"),
        (f"compressed-blobs/lz4/{H}/5", "compressor"),
        ("compressed-blobs", "compressor"),
        (f"uploads/u/blobs/{H}/5", "no segment 'blobs'"),
        (f"actions/blobs/{H}/5", "'actions'"),
        (f"a/operations/b/blobs/{H}/5", "'operations'"),
        (f"actionResults/blobs/{H}/5", "'actionResults'"),
        (f"capabilities/blobs/{H}/5", "'capabilities'"),
        (f"blobs/blobs/{H}/5", "'blobs' where a hash"),
        (f"//blobs/{H}/5", "empty segment"),
        (f"/main/blobs/{H}/5", "empty segment"),
        (f"a//b/blobs/{H}/5", "empty segment"),
        ("x" * MAX_NAME_CHARACTERS + f"/blobs/{H}/5", "characters"),
    ],
)
def test_a_malformed_name_of_a_read_is_refused_with_the_part_that_is_wrong(name: str, said: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse_read_name(name)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "no segment 'uploads'"),
        (f"blobs/{H}/5", "no segment 'uploads'"),
        (f"blobs/uploads/u/blobs/{H}/5", "no segment 'uploads'"),
        (f"operations/uploads/u/blobs/{H}/5", "no segment 'uploads'"),
        ("uploads", "0 characters"),
        (f"uploads//blobs/{H}/5", "0 characters"),
        (f"uploads/{'u' * 201}/blobs/{H}/5", "201 characters"),
        ("uploads/u", "''"),
        (f"uploads/u/v/blobs/{H}/5", "'v'"),
        (f"uploads/u/uploads/u/blobs/{H}/5", "'uploads'"),
        ("uploads/u/blobs", "no hash and size"),
        (f"uploads/u/blobs/{H}", "no hash and size"),
        (f"uploads/u/blobs/{H}/x/5", "not a decimal"),
        (f"uploads/u/blobs/{H.upper()}/5", "not lower-case hexadecimal"),
        (f"uploads/u/compressed-blobs/gzip/{H}/5", "compressor"),
        (f"/main/uploads/u/blobs/{H}/5", "empty segment"),
    ],
)
def test_a_malformed_name_of_a_write_is_refused_with_the_part_that_is_wrong(name: str, said: str) -> None:
    with pytest.raises(MalformedRequest) as refused:
        parse_write_name(name)
    assert said in str(refused.value)


SEGMENTS = st.one_of(
    st.sampled_from(
        [*sorted(KEYWORDS), "", "zstd", "identity", "blake3", "gitsha1", "main", H, H[:40], "0", "5", "-1"]
    ),
    st.text(max_size=8),
)
NAMES = st.one_of(st.text(max_size=200), st.lists(SEGMENTS, max_size=10).map("/".join))


@given(NAMES)
def test_no_name_is_anything_but_a_value_or_refused(name: str) -> None:
    for parse in (parse_read_name, parse_write_name):
        try:
            parsed = parse(name)
        except MalformedRequest:
            continue
        assert not KEYWORDS & set(parsed.instance_name.split("/"))
        assert name.removeprefix("/").startswith(parsed.instance_name)
        assert parsed.digest.hash in name
        assert (parse is parse_write_name) == bool(parsed.uuid)


INSTANCES = st.lists(
    st.text(min_size=1, max_size=10).filter(lambda text: "/" not in text and text not in KEYWORDS), max_size=4
).map("/".join)


@given(
    instance_name=INSTANCES,
    function=st.sampled_from(list(DigestFunction)),
    size_bytes=st.integers(0, 2**63 - 1),
    compressor=st.sampled_from(list(Compressor)),
    uuid=st.text(min_size=1, max_size=40).filter(lambda text: "/" not in text),
)
def test_every_proper_name_is_read_back(
    instance_name: str, function: DigestFunction, size_bytes: int, compressor: Compressor, uuid: str
) -> None:
    digest = Digest("a" * function.hash_length, size_bytes, function)
    prefix = f"{instance_name}/" if instance_name else ""
    blob = digest.blob_name()
    if compressor is not Compressor.IDENTITY:
        blob = blob.replace("blobs/", f"compressed-blobs/{compressor.resource_segment}/", 1)
    assert parse_read_name(prefix + blob) == ResourceName(instance_name, digest, compressor)
    upload = f"{prefix}uploads/{uuid}/{blob}"
    assert parse_write_name(upload) == ResourceName(instance_name, digest, compressor, uuid)
    assert parse_write_name(f"{upload}/meta/data") == ResourceName(instance_name, digest, compressor, uuid)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({}, "blobs/a/1"),
        ({HEADER: "blobs/a/1"}, "blobs/a/1"),
        ({HEADER: "?"}, "b\u00fcro/blobs/a/1"),
        ({"other": "x"}, "blobs/a/1"),
    ],
    ids=["absent", "the same", "no header carries it", "another header"],
)
def test_a_header_may_repeat_the_name(headers: dict[str, str | bytes], name: str) -> None:
    check_header(headers, name)


@pytest.mark.parametrize("said", ["", "blobs/a/2", b"blobs/a/1", "x" * 10_000])
def test_a_header_that_says_something_else_is_refused(said: str | bytes) -> None:
    with pytest.raises(MalformedRequest, match="resource-name") as caught:
        check_header({HEADER: said}, "blobs/a/1")
    assert len(str(caught.value)) < 700
