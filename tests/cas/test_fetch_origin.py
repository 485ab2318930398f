"""URLs: which are fetched, which are not, and what is shown of them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from cas.errors import Code
from cas.fetch_failure import FetchFailed
from cas.fetch_origin import MAX_URL_BYTES, OriginPattern, is_fetchable, parse_url, same_origin, shown

ANY = (OriginPattern.parse("https://*"), OriginPattern.parse("http://*"))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://user:secret@host.test/", Code.PERMISSION_DENIED),
        ("https://user@host.test/", Code.PERMISSION_DENIED),
        ("https://:secret@host.test/", Code.PERMISSION_DENIED),
        ("file:///etc/passwd", Code.PERMISSION_DENIED),
        ("ftp://host.test/", Code.PERMISSION_DENIED),
        ("gopher://host.test/", Code.PERMISSION_DENIED),
        ("data:text/plain,hello", Code.PERMISSION_DENIED),
        ("javascript:alert(1)", Code.PERMISSION_DENIED),
        ("//host.test/", Code.PERMISSION_DENIED),
        ("host.test/file", Code.PERMISSION_DENIED),
        ("", Code.PERMISSION_DENIED),
        ("https://", Code.PERMISSION_DENIED),
        ("https:///path", Code.PERMISSION_DENIED),
        ("https://host.test:99999/", Code.ABORTED),
        ("https://host.test:port/", Code.ABORTED),
        ("https://[::1/", Code.ABORTED),
        ("https://host.test/a b", Code.ABORTED),
        ("https://host.test/\r\nhost: other.test", Code.ABORTED),
        ("https://host.test\\@other.test/", Code.ABORTED),
        ("https://host.test/\x00", Code.ABORTED),
        ("https://host.test/" + "a" * MAX_URL_BYTES, Code.ABORTED),
        ("https://host.test:8443/", Code.PERMISSION_DENIED),
    ],
)
def test_what_is_not_fetched(url: str, code: Code) -> None:
    with pytest.raises(FetchFailed) as caught:
        parse_url(url, ANY)
    assert caught.value.code is code
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "url", "expected"),
    [
        ("https://*", "https://any.test/where?ever=1", True),
        ("https://*", "http://any.test/", False),
        ("https://*", "https://any.test:444/", False),
        ("https://*:444", "https://any.test:444/", True),
        ("https://host.test", "https://host.test/", True),
        ("https://host.test", "https://HOST.test./", True),
        ("https://host.test", "https://host.test.evil.test/", False),
        ("https://host.test", "https://evil.test/host.test", False),
        ("https://host.test", "https://evil.test/#host.test", False),
        ("https://host.test", "https://evilhost.test/", False),
        ("https://*.host.test", "https://a.b.host.test/", True),
        ("https://*.host.test", "https://host.test/", False),
        ("https://*.host.test", "https://evilhost.test/", False),
        ("https://*.host.test", "https://evil.test/.host.test", False),
        ("http://127.0.0.1:80", "http://127.0.0.1/", True),
        ("http://[::1]:8080/", "http://[::1]:8080/x", True),
        ("https://host.test/group", "https://host.test/group/file", True),
        ("https://host.test/group/", "https://host.test/group", True),
        ("https://host.test/group", "https://host.test/groupie", False),
        ("https://host.test/group", "https://host.test/group/../other", False),
        ("https://host.test/group", "https://host.test/group/%2e%2e/other", False),
        ("https://host.test/group", "https://host.test/group/..%2fother", False),
        ("https://host.test/group", "https://host.test/group/%5c..%5cother", False),
        ("https://host.test/group", "https://host.test//group/file", True),
        ("https://host.test/group", "https://host.test/other?group", False),
    ],
)
def test_what_a_pattern_allows(pattern: str, url: str, expected: bool) -> None:
    try:
        parse_url(url, [OriginPattern.parse(pattern)])
        allowed = True
    except FetchFailed:
        allowed = False
    assert allowed is expected


def test_without_patterns_nothing_is_allowed() -> None:
    with pytest.raises(FetchFailed, match=r"https://host.test/file is not an origin"):
        parse_url("https://host.test/file", ())


@pytest.mark.parametrize(
    "pattern",
    ["", "*", "host.test", "ftp://host.test", "https://", "https://a.*.test", "https://*host.test", "https://HOST.test",
     "https://user@host.test", "https://host.test?x", "https://host.test/#x", "https://host test"],
)  # fmt: skip
def test_a_pattern_that_says_nothing_clear_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="allowed_urls"):
        OriginPattern.parse(pattern)


def test_the_fragment_stays_here() -> None:
    assert str(parse_url("https://host.test/a#b", ANY)) == "https://host.test/a"


def test_the_query_is_not_shown() -> None:
    assert shown(URL("https://host.test/a?signature=secret")) == "https://host.test/a"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://host.test/", True),
        ("HTTP://host.test/", True),
        ("urn:fdc:buildstream.build:2020:artifact:x", False),
        ("file:///etc/passwd", False),
        ("httpx://host.test/", False),
        ("", False),
    ],
)
def test_only_http_urls_are_ever_fetched(uri: str, expected: bool) -> None:
    assert is_fetchable(uri) is expected


def test_an_origin_is_scheme_host_and_port() -> None:
    one = URL("https://host.test/a")
    assert same_origin(one, URL("https://host.test:443/b"))
    assert not same_origin(one, URL("http://host.test/a"))
    assert not same_origin(one, URL("https://host.test:444/a"))
    assert not same_origin(one, URL("https://www.host.test/a"))


PARTS = st.sampled_from(
    ["http://", "https://", "//", "/", "\\", "@", ":", "?", "#", "[", "]", "%", "%2e", "..", "\r\n", " ", "\0", "host.test",
     "user", "127.0.0.1", "::1", "xn--", "ä", "。", "。test", "99999", "0"]
)  # fmt: skip


@given(st.lists(PARTS | st.text(max_size=3), max_size=12).map("".join))
@example("http://ä。test:80/")
@example("https://host.test:0/")
def test_whatever_the_text_a_url_that_is_accepted_is_one_of_ours(text: str) -> None:
    try:
        url = parse_url(text, ANY)
    except FetchFailed:
        return
    assert (url.scheme, url.port) in {("http", 80), ("https", 443)}
    assert url.raw_host
    assert url.raw_host.isascii()
    assert url.raw_user is None
    assert url.raw_password is None
    # What is connected to is what a parser of the text that is sent sees.
    assert URL(str(url)).raw_host == url.raw_host
