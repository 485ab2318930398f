"""Why a server cannot listen somewhere, in words, before it has touched anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from rexec.ports import CannotListen, require_free


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("300.0.0.1:80", "the host name is not known"),
        ("nowhere.invalid:8980", "the host name is not known"),
        ("192.0.2.1:8980", "this machine has no such address"),  # RFC 5737: of nobody
        ("[2001:db8::1]:8980", "cannot listen"),  # RFC 3849; without IPv6 the reason is another one
        (f"{'x' * 70}.invalid:8980", "the host name is not known"),
    ],
)
def test_the_reason_is_said_with_address_and_option(address: str, reason: str) -> None:
    with pytest.raises(CannotListen) as caught:
        require_free(address, "--listen")
    assert reason in str(caught.value)
    assert address in str(caught.value)
    assert "(--listen)" in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_port_that_somebody_listens_on_is_taken(taken: int, host: str) -> None:
    with pytest.raises(CannotListen, match="another server"):
        require_free(f"{host}:{taken}", "--listen")


def test_a_port_that_is_refused_for_its_number_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_socket: socket.socket, _where: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("rexec.ports.socket.socket.bind", refused)
    with pytest.raises(CannotListen, match="permission denied; ports below 1024"):
        require_free("127.0.0.1:80", "--listen")


def test_a_free_port_stays_free_and_a_shared_one_may_be_shared(taken: int) -> None:
    require_free("127.0.0.1:0", "--listen")
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        first.bind(("127.0.0.1", 0))
        first.listen()
        address = f"127.0.0.1:{first.getsockname()[1]}"
        require_free(address, "--listen", share_port=True)
        with pytest.raises(CannotListen):
            require_free(address, "--listen")
