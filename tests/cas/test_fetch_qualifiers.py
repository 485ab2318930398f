"""Qualifiers as Bazel sends them, and as nobody should."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import MalformedRequest, QualifiersNotSupported
from cas.fetch_qualifiers import (
    MAX_QUALIFIER_BYTES,
    MAX_QUALIFIERS,
    checked,
    fetch_options,
    is_secret,
    parse_checksum,
)
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2

URLS = ("https://one.test/a", "https://two.test/a")


def sri(algorithm: str, content: bytes = b"content") -> str:
    return f"{algorithm}-{base64.b64encode(hashlib.new(algorithm, content).digest()).decode()}"


def qualifiers(*pairs: tuple[str, str]) -> list[asset_pb2.Qualifier]:
    return [asset_pb2.Qualifier(name=name, value=value) for name, value in pairs]


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_checksums_of_each_strength(algorithm: str) -> None:
    checksum = parse_checksum(sri(algorithm))
    assert checksum.algorithm == algorithm
    assert checksum.hashes == {hashlib.new(algorithm, b"content").digest()}


def test_the_strongest_checksum_counts_and_any_of_its_kind_will_do() -> None:
    text = " ".join([sri("sha256"), sri("sha384", b"one") + "?option", sri("sha384", b"two")])
    checksum = parse_checksum(text)
    assert checksum.algorithm == "sha384"
    assert checksum.hashes == {hashlib.sha384(b"one").digest(), hashlib.sha384(b"two").digest()}


@pytest.mark.parametrize(
    "text",
    ["", " ", "sha256", "sha256-", "sha1-AAAA", "md5-AAAA", "sha256-!!!!", "sha256-AAAA", sri("sha256")[:-1],
     sri("sha256") + "A", sri("sha256").replace("sha256", "sha512"), sri("sha256") + " nonsense"],
)  # fmt: skip
def test_what_is_no_checksum_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest, match=r"checksum\.sri"):
        parse_checksum(text)


def test_headers_for_all_urls_and_for_one() -> None:
    options = fetch_options(
        {
            "http_header:Authorization": "Bearer general",
            "http_header:X-Name": "value",
            "http_header_url:1:authorization": "Bearer special",
            "bazel.canonical_id": "anything",
        },
        URLS,
    )
    assert options.checksum is None
    assert dict(options.headers[0]) == {"authorization": "Bearer general", "x-name": "value"}
    assert dict(options.headers[1]) == {"authorization": "Bearer special", "x-name": "value"}


def test_the_headers_that_older_bazels_send_go_to_their_url_only() -> None:
    headers = {URLS[1]: {"Authorization": "Basic abc", "X-Many": ["a", "b"]}, "https://else.test": {"A": "b"}}
    options = fetch_options({"bazel.auth_headers": json.dumps(headers)}, URLS)
    assert options.headers[0] == ()
    assert dict(options.headers[1]) == {"authorization": "Basic abc", "x-many": "a,b"}


@pytest.mark.parametrize(
    "name",
    ["Host", "content-length", "Transfer-Encoding", "Connection", "Proxy-Authorization", "Range", "a b", "", "a:b", "ä",
     "a\r\nHost", "x" * 101],
)  # fmt: skip
def test_headers_that_would_change_the_request_itself_are_refused(name: str) -> None:
    with pytest.raises(MalformedRequest):
        fetch_options({f"http_header:{name}": "value"}, URLS)
    with pytest.raises(MalformedRequest):
        fetch_options({f"http_header_url:0:{name}": "value"}, URLS)
    with pytest.raises(MalformedRequest):
        fetch_options({"bazel.auth_headers": json.dumps({URLS[0]: {name: "value"}})}, URLS)


@pytest.mark.parametrize("value", ["secret\r\nHost: other.test", "secret\n", "secret\0", "secretä", "secret\x7f"])
def test_values_that_are_more_than_a_value_are_refused_and_not_repeated(value: str) -> None:
    with pytest.raises(MalformedRequest) as caught:
        fetch_options({"http_header:Authorization": value}, URLS)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("place", ["2", "99999", "-1", "x", ""])
def test_a_header_for_a_url_that_is_not_there_is_refused(place: str) -> None:
    with pytest.raises(MalformedRequest, match="names no URL"):
        fetch_options({f"http_header_url:{place}:A": "b"}, URLS)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"a": 1}', '{"a": {"b": 1}}', "[" * 100_000, "null"])
def test_auth_headers_that_are_not_the_right_json_are_refused(text: str) -> None:
    with pytest.raises(MalformedRequest, match="not JSON"):
        fetch_options({"bazel.auth_headers": text}, URLS)


def test_all_that_is_not_understood_is_named_at_once() -> None:
    with pytest.raises(QualifiersNotSupported) as caught:
        fetch_options({"vcs.branch": "main", "checksum.sri": sri("sha256"), "resource_type": "x"}, URLS)
    assert caught.value.names == ("vcs.branch", "resource_type")


def test_qualifiers_are_checked_before_anything_else() -> None:
    assert checked(qualifiers(("b", "2"), ("a", "1"))) == {"a": "1", "b": "2"}
    for wrong in (
        qualifiers(("a", "1"), ("a", "1")),
        qualifiers(("", "1")),
        qualifiers(("a", "x" * MAX_QUALIFIER_BYTES)),
        qualifiers(*((str(number), "") for number in range(MAX_QUALIFIERS + 1))),
    ):
        with pytest.raises(MalformedRequest):
            checked(wrong)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("bazel.auth_headers", True), ("http_header:A", True), ("http_header_url:0:A", True), ("checksum.sri", False)],
)
def test_what_may_be_a_secret(name: str, expected: bool) -> None:
    assert is_secret(name) is expected


NAMES = st.sampled_from(
    ["checksum.sri", "bazel.auth_headers", "http_header:", "http_header_url:", "http_header_url:1:"]
)
VALUES = st.text(max_size=20) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
).map(json.dumps)


@given(st.dictionaries(st.tuples(NAMES, st.text(max_size=5)).map("".join) | NAMES, VALUES, max_size=4))
def test_any_qualifiers_are_understood_or_refused(values: dict[str, str]) -> None:
    try:
        options = fetch_options(values, URLS)
    except MalformedRequest:
        return
    assert len(options.headers) == len(URLS)
    for name, value in (header for headers in options.headers for header in headers):
        assert name.isascii()
        assert name.islower() or not any(map(str.isalpha, name))
        assert "\n" not in name + value
        assert "\r" not in name + value
