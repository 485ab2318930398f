"""Addresses as people write them."""

from __future__ import annotations

import pytest

from rexec.address import channel_target, host_and_port, is_loopback, is_secure


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("grpc://127.0.0.1:8980", "127.0.0.1:8980"),
        ("grpc://build.example.org:1/", "build.example.org:1"),
        ("grpcs://build.example.org:1", "build.example.org:1"),
        ("localhost:80", "localhost:80"),
        ("[::1]:8980", "[::1]:8980"),
        ("unix:/run/rexec.sock", "unix:/run/rexec.sock"),
    ],
)
def test_a_server_is_named_in_any_of_these_ways(text: str, target: str) -> None:
    assert channel_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8980",
        "127.0.0.1",
        "grpc://",
        "http://host:1",
        "grpcs://grpc://host:1",
        "host:99999",
        "host:-1",
        "unix:",
        "a b:1",
    ],
)
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        channel_target(text)


def test_only_one_scheme_asks_for_encryption() -> None:
    assert is_secure("grpcs://host:1")
    assert not any(is_secure(text) for text in ("grpc://host:1", "host:1", "unix:/grpcs://x"))


def test_the_parts_of_an_address() -> None:
    assert host_and_port("[::]:0") == ("[::]", 0)
    assert host_and_port("0.0.0.0:65535") == ("0.0.0.0", 65535)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True), ("0.0.0.0", False), ("::", False)],
)
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
