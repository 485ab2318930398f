"""A whole server without workers, in this process."""

from __future__ import annotations

import os
import stat
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from cas.digest import Digest
from cas.remote import RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.config import Config, parse
from rexec.server import CannotServe, running

CAPABILITIES = "/build.bazel.remote.execution.v2.Capabilities/GetCapabilities"


def config(state: Path, more: str = "") -> Config:
    return parse(f'state_dir = "{state}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\n{more}')


async def capabilities(target: str, instance_name: str = "") -> re_pb2.ServerCapabilities:
    async with aio.insecure_channel(target) as channel:
        call: Any = channel.unary_unary(CAPABILITIES)
        request = re_pb2.GetCapabilitiesRequest(instance_name=instance_name)
        return re_pb2.ServerCapabilities.FromString(await call(request.SerializeToString()))


async def test_cache_and_execution_are_offered_before_any_worker_is_there(tmp_path: Path) -> None:
    """Behaviour 53."""
    async with running(config(tmp_path)) as server:
        answer = await capabilities(server.addresses[0])
    assert (answer.low_api_version.major, answer.low_api_version.minor) == (2, 0)
    assert answer.execution_capabilities.exec_enabled
    assert answer.execution_capabilities.digest_function == re_pb2.DigestFunction.SHA256
    assert re_pb2.DigestFunction.BLAKE3 in answer.cache_capabilities.digest_functions
    assert answer.execution_capabilities.execution_priority_capabilities.priorities
    assert answer.cache_capabilities.action_cache_update_capabilities.update_enabled


async def test_an_unknown_instance_is_refused_and_the_known_ones_are_named(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as server:
        assert (await capabilities(server.addresses[0], "main")).HasField("cache_capabilities")
        with pytest.raises(aio.AioRpcError) as caught:
            await capabilities(server.addresses[0], "elsewhere")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'elsewhere'" in (caught.value.details() or "")
    assert "'main'" in (caught.value.details() or "")


async def test_blobs_outlive_the_server(tmp_path: Path) -> None:
    data = b"kept"
    async with running(config(tmp_path)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        assert await RemoteStore(channel).write_many([(Digest.of(data), data)]) == {}
    async with running(config(tmp_path)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        assert await RemoteStore(channel, "main").read_many([Digest.of(data)]) == {Digest.of(data): data}


async def test_a_second_server_on_the_port_fails_at_once_and_names_it(tmp_path: Path) -> None:
    async with running(config(tmp_path / "one")) as first:
        second = parse(f'state_dir = "{tmp_path / "two"}"\n[server]\nlisten = ["{first.addresses[0]}"]')
        with pytest.raises(CannotServe, match=first.addresses[0]):
            async with running(second):
                pass
        assert not (tmp_path / "two").exists()  # a start that fails leaves nothing behind
        assert (await capabilities(first.addresses[0])).HasField("cache_capabilities")


async def test_a_second_server_on_the_state_directory_fails_and_names_it(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as first:
        with pytest.raises(CannotServe, match=str(tmp_path)):
            async with running(config(tmp_path)):
                pass
        assert (await capabilities(f"unix:{first.socket}")).HasField("cache_capabilities")


async def test_the_state_directory_is_one_servers_wherever_the_blobs_are(tmp_path: Path) -> None:
    """The local worker's socket lies there; a second server must not take it away."""
    elsewhere = config(tmp_path / "state", '[store]\nkind = "memory"')
    async with running(elsewhere) as first:
        with pytest.raises(CannotServe, match=f"{tmp_path / 'state'} is in use"):
            async with running(elsewhere):
                pass
        assert (await capabilities(f"unix:{first.socket}")).HasField("cache_capabilities")


async def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotServe, match=str(tmp_path / "file")):
        async with running(config(tmp_path / "file" / "state")):
            pass


async def test_what_a_server_keeps_is_the_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with running(config(tmp_path / "new")):
            assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
            databases = list((tmp_path / "new").glob("*.sqlite3*"))
            assert databases
            assert {stat.S_IMODE(file.stat().st_mode) for file in databases} == {0o600}
        (tmp_path / "given").mkdir(mode=0o755)
        async with running(config(tmp_path / "given")):
            assert stat.S_IMODE((tmp_path / "given").stat().st_mode) == 0o755
    finally:
        os.umask(before)


async def test_the_local_workers_socket_is_the_users_alone(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as server:
        assert server.socket is not None
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600
    assert not server.socket.exists()


async def test_metrics_show_calls_and_state(tmp_path: Path) -> None:
    port = free_port()
    async with running(config(tmp_path, f'metrics_listen = "127.0.0.1:{port}"')) as server:
        await capabilities(server.addresses[0])
        text = await fetch(f"http://127.0.0.1:{port}/metrics")
        with pytest.raises(CannotServe, match="metrics"):
            async with running(config(tmp_path / "two", f'metrics_listen = "127.0.0.1:{port}"')):
                pass
    assert f'rexec_rpcs_total{{code="OK",method="{CAPABILITIES[1:]}"}} 1.0' in text
    assert 'rexec_workers{state="ready"} 0.0' in text
    assert "rexec_stored_bytes" in text


def free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def fetch(url: str) -> str:
    import asyncio

    def get() -> str:
        with urllib.request.urlopen(url, timeout=20) as answer:
            text: str = answer.read().decode()
        return text

    return await asyncio.to_thread(get)


async def test_the_largest_blob_is_advertised_and_kept_to(tmp_path: Path) -> None:
    limited = parse(
        f'state_dir = "{tmp_path}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\n[store]\nmax_blob_bytes = 100'
    )
    small, large = b"s" * 100, b"l" * 101
    async with running(limited) as server, aio.insecure_channel(server.addresses[0]) as channel:
        answer = await capabilities(server.addresses[0])
        store = RemoteStore(channel)
        failures = await store.write_many([(Digest.of(small), small), (Digest.of(large), large)])
    assert answer.cache_capabilities.max_cas_blob_size_bytes == 100
    assert set(failures) == {Digest.of(large)}
