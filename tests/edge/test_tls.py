"""TLS and mutual TLS, over real connections on loopback."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from cas.connection_settings import ConnectionSettings
from cas.digest import Digest
from cas.errors import NotAllowed
from cas.remote import RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.auth.credentials import AuthUnusable
from rexec.config import Config, ConfigError, parse
from rexec.connection import Bearer, CannotConnect, headers, open_channel
from rexec.server import CannotServe, running
from rexec.tls import TlsFiles, read
from rexec.tls_settings import TlsSettings
from tests.edge.certificates import Authority, Pair

CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"
HEALTH = "/grpc.health.v1.Health/Check"


def config(state: Path, pair: Pair, client_ca: Path | None = None, more: str = "") -> Config:
    trusted = f'client_ca = "{client_ca}"' if client_ca else ""
    return parse(
        f'state_dir = "{state}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\n'
        f'[server.tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n{trusted}\n{more}'
    )


@asynccontextmanager
async def connected(address: str, **settings: Any) -> AsyncIterator[aio.Channel]:
    async with open_channel(f"grpcs://{address}", ConnectionSettings(**settings)) as channel:
        yield channel


async def capabilities(channel: aio.Channel) -> re_pb2.ServerCapabilities:
    call: Any = channel.unary_unary(CAPABILITIES)
    return re_pb2.ServerCapabilities.FromString(await call(b""))


async def refused(channel: aio.Channel) -> None:
    """No call gets through the handshake."""
    with pytest.raises(aio.AioRpcError) as caught:
        await capabilities(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


async def test_a_client_that_trusts_the_authority_is_served(tmp_path: Path, authority: Authority) -> None:
    data = b"x" * 5_000_000
    async with (
        running(config(tmp_path / "state", authority.pair("server"))) as server,
        connected(server.addresses[0], tls_ca=str(authority.file)) as channel,
    ):
        store = RemoteStore(channel)
        assert await store.write_many([(Digest.of(data), data)]) == {}
        assert await store.read_many([Digest.of(data)]) == {Digest.of(data): data}


async def test_others_do_not_get_through(tmp_path: Path, authority: Authority, stranger: Authority) -> None:
    async with running(config(tmp_path / "state", authority.pair("server"))) as server:
        async with connected(server.addresses[0], tls_ca=str(stranger.file)) as channel:
            await refused(channel)
        async with aio.insecure_channel(server.addresses[0]) as channel:
            await refused(channel)


async def test_the_local_workers_socket_needs_no_certificate(tmp_path: Path, authority: Authority) -> None:
    strict = config(tmp_path / "state", authority.pair("server"), authority.file, "[auth]\nanonymous = []")
    async with running(strict) as server, open_channel(f"unix:{server.socket}", ConnectionSettings()) as channel:
        assert (await capabilities(channel)).execution_capabilities.exec_enabled


async def test_mutual_tls_serves_those_whose_certificate_the_authority_signed(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    strict = config(tmp_path / "state", authority.pair("server"), authority.file)
    ca = str(authority.file)
    async with running(strict) as server:
        good = authority.pair("client")
        shown = {"tls_certificate": str(good.certificate), "tls_key": str(good.key)}
        async with connected(server.addresses[0], tls_ca=ca, **shown) as channel:
            assert (await capabilities(channel)).execution_capabilities.exec_enabled
        for pair in (stranger.pair("forged"), authority.pair("old", expired=True)):
            shown = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
            async with connected(server.addresses[0], tls_ca=ca, **shown) as channel:
                await refused(channel)
        async with connected(server.addresses[0], tls_ca=ca) as channel:
            await refused(channel)


CERTIFICATES = """
[[auth.certificates]]
identity = "ci"
alternative_name = "spiffe://corp/ci"
rights = ["execute"]
[[auth.certificates]]
identity = "cache writer"
common_name = "writer"
rights = ["update_action_cache"]
instances = ["main"]
"""


@pytest.mark.parametrize(
    ("name", "uris", "execute", "update"),
    [
        ("anyone", ["spiffe://corp/ci"], True, False),
        ("anyone", ["spiffe://corp/other", "spiffe://corp/ci"], True, False),
        ("writer", [], False, True),
    ],
)
async def test_a_certificate_stands_for_an_identity(
    tmp_path: Path, authority: Authority, name: str, uris: list[str], execute: bool, update: bool
) -> None:
    strict = config(tmp_path / "state", authority.pair("server"), authority.file, CERTIFICATES)
    pair = authority.pair(name, *uris)
    async with (
        running(strict) as server,
        connected(
            server.addresses[0],
            tls_ca=str(authority.file),
            tls_certificate=str(pair.certificate),
            tls_key=str(pair.key),
        ) as channel,
    ):
        call: Any = channel.unary_unary(CAPABILITIES)
        request = re_pb2.GetCapabilitiesRequest(instance_name="main")
        answer = re_pb2.ServerCapabilities.FromString(await call(request.SerializeToString()))
        assert answer.execution_capabilities.exec_enabled is execute
        assert answer.cache_capabilities.action_cache_update_capabilities.update_enabled is update
        if update:
            with pytest.raises(NotAllowed):
                await RemoteStore(channel).find_missing([Digest.of(b"x")])


@pytest.mark.parametrize(
    ("name", "uris"),
    [
        ("nobody", []),
        ("spiffe://corp/ci", []),
        ("WRITER", []),
        ("nobody", ["spiffe://corp/ci/more"]),
        ("nobody", ["spiffe://corp/"]),
    ],
)
async def test_a_certificate_that_nothing_names_is_nobodys(
    tmp_path: Path, authority: Authority, name: str, uris: list[str]
) -> None:
    strict = config(tmp_path / "state", authority.pair("server"), authority.file, CERTIFICATES)
    pair = authority.pair(name, *uris, into=Pair(tmp_path / "client.pem", tmp_path / "client.key"))
    shown = {"tls_certificate": str(pair.certificate), "tls_key": str(pair.key)}
    async with (
        running(strict) as server,
        connected(server.addresses[0], tls_ca=str(authority.file), **shown) as channel,
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await capabilities(channel)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        probe: Any = channel.unary_unary(HEALTH)
        assert await probe(b"")


async def test_new_files_count_at_the_next_connection(
    tmp_path: Path, authority: Authority, stranger: Authority
) -> None:
    pair = authority.pair("server")
    async with (
        running(config(tmp_path / "state", pair)) as server,
        connected(server.addresses[0], tls_ca=str(authority.file)) as before,
    ):
        await capabilities(before)
        stranger.pair("server", into=pair)
        async with connected(server.addresses[0], tls_ca=str(stranger.file)) as after:
            await capabilities(after)
        await capabilities(before)  # whoever is connected stays connected


def test_half_of_a_change_waits_for_the_other_half(tmp_path: Path, authority: Authority) -> None:
    pair = authority.pair("server")
    files = TlsFiles(TlsSettings(certificate=str(pair.certificate), key=str(pair.key)))
    first = files.current
    fresh = authority.pair("fresh")
    os.replace(fresh.certificate, pair.certificate)
    assert files.changed() is None
    assert files.current is first
    os.replace(fresh.key, pair.key)
    changed = files.changed()
    assert changed is not None
    assert (changed.certificate, changed.key) == pair.read()
    assert files.changed() is None
    pair.key.unlink()
    assert files.changed() is None
    assert files.current is changed


def test_files_that_cannot_be_used_are_named(tmp_path: Path, authority: Authority) -> None:
    good, other = authority.pair("server"), authority.pair("other")
    noise = tmp_path / "noise.pem"
    noise.write_bytes(b"\x00\xff" * 100)
    for certificate, key, client_ca, named in (
        (tmp_path / "absent.pem", good.key, "", "absent.pem"),
        (good.certificate, other.key, "", "server.pem"),
        (noise, good.key, "", "noise.pem"),
        (good.certificate, noise, "", "noise.pem"),
        (good.certificate, good.key, str(noise), "noise.pem"),
        (good.certificate, good.key, str(tmp_path / "absent.pem"), "absent.pem"),
    ):
        with pytest.raises(AuthUnusable, match=named):
            read(TlsSettings(certificate=str(certificate), key=str(key), client_ca=client_ca))


async def test_a_server_does_not_start_without_the_encryption_it_is_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    pair = authority.pair("server")
    pair.key.unlink()
    with pytest.raises(CannotServe, match=r"server\.key"):
        async with running(config(tmp_path / "state", pair)):
            pass


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[server.tls]\ncertificate = "x"', r"server\.tls.*both certificate and key"),
        ('[server.tls]\nclient_ca = "x"', "client_ca is set"),
        ('[connection]\ntls_key = "x"', "both tls_certificate and tls_key"),
        ('[[auth.certificates]]\nidentity = "a"\ncommon_name = "b"', r"expected server\.tls\.client_ca"),
    ],
)
def test_half_a_configuration_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text)


def test_a_token_file_is_read_and_nothing_else_is_taken_for_a_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("abc.def\n")
    assert list(Bearer(file)) == [("authorization", "Bearer abc.def")]
    assert list(headers("grpc://h:1", ConnectionSettings(token_file=str(file)))) == list(Bearer(file))
    assert list(headers("unix:/x", ConnectionSettings(token_file="absent"))) == []
    for wrong in (b"", b"\n", b"two words", b"a\nb", b"\x00", b"t\xc3\xb6k"):
        file.write_bytes(wrong)
        with pytest.raises(CannotConnect, match=str(file)):
            headers("grpc://h:1", ConnectionSettings(token_file=str(file)))


def test_a_client_certificate_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = ConnectionSettings(tls_certificate=str(tmp_path / "absent.pem"), tls_key=str(tmp_path / "absent.key"))
    with pytest.raises(CannotConnect, match="absent"):
        open_channel("grpcs://localhost:1", missing)
