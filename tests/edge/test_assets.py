"""Remote Asset as a whole server offers it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from cas.digest import Digest
from cas.remote import RemoteStore
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from protos.methods import methods_of
from rexec.config import Config, parse
from rexec.server import CannotServe, running

DATA = b"content"


def config(state: Path, more: str = "") -> Config:
    return parse(f'state_dir = "{state}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\n{more}')


async def call(channel: aio.Channel, service: str, name: str, request: Any) -> Any:
    method = methods_of(asset_pb2, service)[name]
    answer: Any = channel.unary_unary(method.path)
    return method.response_type.FromString(await answer(request.SerializeToString()))


async def push(channel: aio.Channel) -> None:
    assert await RemoteStore(channel).write_many([(Digest.of(DATA), DATA)]) == {}
    request = asset_pb2.PushBlobRequest(instance_name="main", uris=["urn:a"], blob_digest=Digest.of(DATA).to_proto())
    await call(channel, "Push", "PushBlob", request)


async def fetch(channel: aio.Channel, uri: str = "urn:a", **qualifiers: str) -> asset_pb2.FetchBlobResponse:
    request = asset_pb2.FetchBlobRequest(instance_name="main", uris=[uri])
    for name, value in qualifiers.items():
        request.qualifiers.add(name=name, value=value)
    answer: asset_pb2.FetchBlobResponse = await call(channel, "Fetch", "FetchBlob", request)
    return answer


async def test_assets_outlive_the_server(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        await push(channel)
    async with running(config(tmp_path)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        assert (await fetch(channel)).blob_digest == Digest.of(DATA).to_proto()


async def test_assets_of_a_server_in_memory_are_kept_in_memory(tmp_path: Path) -> None:
    memory = config(tmp_path, '[store]\nkind = "memory"')
    async with running(memory) as server, aio.insecure_channel(server.addresses[0]) as channel:
        await push(channel)
        assert (await fetch(channel)).blob_digest == Digest.of(DATA).to_proto()
    assert "assets.sqlite3" not in os.listdir(tmp_path)


async def test_nothing_is_fetched_unless_configured(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await fetch(channel, "http://127.0.0.1:1/")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_this_machine_is_not_fetched_from_when_fetching_is_on(tmp_path: Path) -> None:
    outside = config(tmp_path, '[assets]\nfetch = true\nallowed_urls = ["http://*:1"]')
    async with running(outside) as server, aio.insecure_channel(server.addresses[0]) as channel:
        answer = await fetch(channel, "http://127.0.0.1:1/")
        assert answer.status.code == grpc.StatusCode.PERMISSION_DENIED.value[0]


async def test_unsupported_qualifiers_are_in_the_details_of_the_call(tmp_path: Path) -> None:
    outside = config(tmp_path, "[assets]\nfetch = true")
    async with running(outside) as server, aio.insecure_channel(server.addresses[0]) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await fetch(channel, "https://host.test/", unknown="x")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    trailers = dict(caught.value.trailing_metadata())
    (detail,) = status_pb2.Status.FromString(trailers["grpc-status-details-bin"]).details
    request = error_details_pb2.BadRequest()
    assert detail.Unpack(request)
    assert [violation.description for violation in request.field_violations] == ['"unknown" not supported']


async def test_without_the_http_client_the_server_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "cas.fetch_http", raising=False)
    with pytest.raises(CannotServe, match=r"pip install .\.\[fetch\]"):
        async with running(config(tmp_path, "[assets]\nfetch = true")):
            pass
