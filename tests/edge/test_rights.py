"""Who may do what: every RPC of a real server for every kind of caller, and nothing said to those who may not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.longrunning import operations_pb2
from google.protobuf.message import Message
from grpc import aio

from cas.digest import Digest
from cas.remote import RemoteStore
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from protos.rexec.scheduler.v1 import frontends_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.config import Config, parse, with_changes
from rexec.frontend_role import running_frontend
from rexec.scheduler_role import running_scheduler
from rexec.server import Running, running
from tests.edge.issuer import AUDIENCE, ISSUER, SigningKey, key_set

REAPI = "/build.bazel.remote.execution.v2"
BLOB = f"blobs/{hashlib.sha256(b'x').hexdigest()}/1"
ASK, REFUSE = "allowed", "refused"

RIGHTS = {
    "reader": ["read"],
    "builder": ["execute"],
    "writer": ["update_action_cache"],
    "worker": ["work"],
    "operator": ["operate"],
    "frontend": ["front"],
    "idle": [],
}
EVERYTHING = ["read", "execute", "update_action_cache", "work", "operate", "front"]
INCLUDED = {"front": set(EVERYTHING), **{right: {right, "read"} for right in EVERYTHING[:-1]}}
"""What else a right gives."""

NEEDED: dict[str, tuple[str, Message | bytes]] = {
    "Capabilities.GetCapabilities": ("read", b""),
    "ContentAddressableStorage.FindMissingBlobs": ("read", b""),
    "ContentAddressableStorage.BatchUpdateBlobs": ("read", b""),
    "ContentAddressableStorage.BatchReadBlobs": ("read", b""),
    "ContentAddressableStorage.GetTree": ("read", b""),
    "ContentAddressableStorage.SplitBlob": ("read", b""),
    "ContentAddressableStorage.SpliceBlob": ("read", b""),
    "ActionCache.GetActionResult": ("read", b""),
    "ActionCache.UpdateActionResult": ("update_action_cache", b""),
    "ByteStream.Read": ("read", bytestream_pb2.ReadRequest(resource_name=BLOB)),
    "ByteStream.Write": ("read", bytestream_pb2.WriteRequest(resource_name=f"uploads/1-2-3-4-5/{BLOB}", data=b"y")),
    "ByteStream.QueryWriteStatus": (
        "read",
        bytestream_pb2.QueryWriteStatusRequest(resource_name=f"uploads/1-2-3-4-5/{BLOB}"),
    ),
    "Execution.Execute": ("execute", b""),
    "Execution.WaitExecution": ("execute", b""),
    "Operations.GetOperation": ("execute", b""),
    "Operations.ListOperations": ("execute", b""),
    "Operations.CancelOperation": ("execute", b""),
    "Operations.DeleteOperation": ("execute", b""),
    "Operations.WaitOperation": ("execute", b""),
    "Status.GetOverview": ("execute", b""),
    "Status.FindOperations": ("execute", b""),
    "Status.FindWorkers": ("execute", b""),
    "Fleet.DrainWorkers": ("operate", b""),
    "Autoscaling.Follow": ("operate", b""),
    "ExternalScaler.IsActive": ("execute or operate", b""),
    "ExternalScaler.StreamIsActive": ("execute or operate", b""),
    "ExternalScaler.GetMetricSpec": ("execute or operate", b""),
    "ExternalScaler.GetMetrics": ("execute or operate", b""),
    "Workers.Attach": ("work", worker_pb2.FromWorker()),
    "Frontends.Connect": ("front", frontends_pb2.FromFrontend()),
    "Frontends.ReadLog": ("front", frontends_pb2.ReadLogRequest()),
    "Frontends.Attach": ("front", worker_pb2.FromWorker()),
    "Fetch.FetchBlob": ("read", remote_asset_pb2.FetchBlobRequest(uris=["urn:x"])),
    "Fetch.FetchDirectory": ("read", remote_asset_pb2.FetchDirectoryRequest(uris=["urn:x"])),
    "Push.PushBlob": ("update_action_cache", remote_asset_pb2.PushBlobRequest(uris=["urn:x"])),
    "Push.PushDirectory": ("update_action_cache", remote_asset_pb2.PushDirectoryRequest(uris=["urn:x"])),
    "Health.Check": ("nothing", b""),
    "Health.Watch": ("nothing", b""),
    "Health.List": ("nothing", b""),
    "ServerReflection.ServerReflectionInfo": ("a name", b""),
}
"""The right that each RPC needs, or those of which one is enough, and a request that is refused for nothing else."""

KEY = SigningKey("ES256", "key")


def token(name: str) -> str:
    return f"token-of-{name}"


def config(tmp_path: Path, more: str = "") -> Config:
    entries: list[tuple[str, list[str], list[str] | None]] = [(name, rights, None) for name, rights in RIGHTS.items()]
    entries += [("everything", EVERYTHING, None), ("elsewhere", EVERYTHING, ["other"])]
    text = "".join(
        f'[[token]]\nidentity = "{name}"\nsha256 = "{hashlib.sha256(token(name).encode()).hexdigest()}"\n'
        f"rights = {json.dumps(rights)}\n{'' if instances is None else f'instances = {json.dumps(instances)}'}\n"
        for name, rights, instances in entries
    )
    (tmp_path / "tokens.toml").write_text(text)
    (tmp_path / "keys.json").write_bytes(key_set(KEY))
    return parse(
        f'state_dir = "{tmp_path}/state"\nslots = 0\n'
        f'[server]\nlisten = ["127.0.0.1:0"]\ninstance_names = ["", "main", "other"]\n'
        f'[auth]\n{more}\n[auth.tokens]\nfile = "{tmp_path}/tokens.toml"\n'
        f'[auth.jwt]\nissuer = "{ISSUER}"\naudience = ["{AUDIENCE}"]\njwks_file = "{tmp_path}/keys.json"\n'
    )


@asynccontextmanager
async def serving(tmp_path: Path, more: str = "") -> AsyncIterator[tuple[Running, aio.Channel]]:
    async with running(config(tmp_path, more)) as server, aio.insecure_channel(server.addresses[0]) as channel:
        yield server, channel


@asynccontextmanager
async def serving_apart(tmp_path: Path) -> AsyncIterator[tuple[Running, Running]]:
    """A scheduler and a frontend of it, each of which asks for the same credentials."""
    given = config(tmp_path)
    async with running_scheduler(given) as scheduler:
        frontend = with_changes(given, frontend__schedulers=[f"unix:{scheduler.socket}"])
        async with running_frontend(frontend) as frontend_:
            yield scheduler, frontend_


async def answer(
    channel: aio.Channel, path: str, request: Message | bytes = b"", bearer: str | None = None
) -> tuple[grpc.StatusCode, str, bytes]:
    """The status of a call of any kind, its text, and its first message."""
    # One message and the end of the client's side, which a call of any kind may begin with. A stream that is written to when
    # the server ends it has its status replaced by the library.
    call: Any = channel.unary_stream(path)
    data = request if isinstance(request, bytes) else request.SerializeToString()
    headers = () if bearer is None else (("authorization", f"Bearer {bearer}"),)
    stream: Any = call(data, metadata=headers, timeout=30)
    try:
        first = await stream.read()
    except aio.AioRpcError:
        first = aio.EOF
    if first is not aio.EOF:
        stream.cancel()
        return grpc.StatusCode.OK, "", first
    return await stream.code(), await stream.details() or "", b""


def paths(server: Running) -> dict[str, str]:
    """The paths of all RPCs that the server has, by the short name of service and method."""
    return {
        f"{service.name}.{method.name}": f"/{service.full_name}/{method.name}"
        for service in server.services
        for method in service.methods
    }


def short(status: tuple[grpc.StatusCode, str, bytes]) -> str:
    code, text, _data = status
    if code is grpc.StatusCode.PERMISSION_DENIED:
        assert text == "not allowed"
        return REFUSE
    assert code is not grpc.StatusCode.UNAUTHENTICATED, text
    return ASK


async def wrongly_answered(server: Running, channel: aio.Channel) -> dict[tuple[str, str], str]:
    """The RPCs of the server that answer a kind of caller otherwise than NEEDED says, with how they do."""
    wrong = {}
    for rpc, path in paths(server).items():
        needed, request = NEEDED[rpc]
        for name, rights in {**RIGHTS, "everything": EVERYTHING}.items():
            held = {"nothing", "a name"}.union(*(INCLUDED[right] for right in rights))
            found = short(await answer(channel, path, request, token(name)))
            if found != (REFUSE if held.isdisjoint(needed.split(" or ")) else ASK):
                wrong[rpc, name] = found
    return wrong


async def test_every_rpc_needs_its_right_and_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, channel):
        assert set(paths(server)) == set(NEEDED), "an RPC without a line in the table"
        assert await wrongly_answered(server, channel) == {}


async def test_the_roles_apart_ask_for_the_same_rights(tmp_path: Path) -> None:
    async with serving_apart(tmp_path) as (scheduler, frontend):
        for_clients = {rpc for rpc in NEEDED if rpc.startswith(("Execution.", "Operations."))}
        assert set(paths(scheduler)) == set(NEEDED) - for_clients
        assert set(paths(frontend)) == {rpc for rpc in NEEDED if not rpc.startswith(("Frontends.", "Autoscaling."))}
        for role in (scheduler, frontend):
            async with aio.insecure_channel(role.addresses[0]) as channel:
                assert await wrongly_answered(role, channel) == {}


@pytest.mark.parametrize(
    "bearer",
    [None, "", "wrong", "token-of-reader2", "TOKEN-OF-READER", KEY.token(exp=1), KEY.token()[:-5], "a.b.c"],
)
async def test_without_credentials_that_count_only_health_answers(tmp_path: Path, bearer: str | None) -> None:
    async with serving(tmp_path) as (server, channel):
        for rpc, path in paths(server).items():
            code, text, _data = await answer(channel, path, NEEDED[rpc][1], bearer)
            if rpc.startswith("Health."):
                assert code is grpc.StatusCode.OK
            else:
                assert (rpc, code, text) == (rpc, grpc.StatusCode.UNAUTHENTICATED, "not authenticated")


@pytest.mark.parametrize("header", ["Basic dXNlcjpwdw==", "Bearer", "bearer ", "token-of-reader", "Bearer,token"])
async def test_other_schemes_do_not_count(tmp_path: Path, header: str) -> None:
    async with serving(tmp_path) as (_server, channel):
        call: Any = channel.unary_unary(f"{REAPI}.Capabilities/GetCapabilities")
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"", metadata=(("authorization", header),))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_name_of_the_scheme_may_be_written_in_any_case(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, channel):
        call: Any = channel.unary_unary(f"{REAPI}.Capabilities/GetCapabilities")
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert await call(b"", metadata=(("authorization", f"{scheme} {token('reader')}"),))


async def test_a_token_of_a_mebibyte_hurts_nobody(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, channel):
        path = f"{REAPI}.Capabilities/GetCapabilities"
        code, _text, _data = await answer(channel, path, bearer="x" * (1 << 20))
        assert code is not grpc.StatusCode.OK
        assert (await answer(channel, path, bearer=token("reader")))[0] is grpc.StatusCode.OK


async def test_a_wrong_token_is_refused_though_nobody_in_particular_may_read(tmp_path: Path) -> None:
    async with serving(tmp_path, 'anonymous = ["read"]\nanonymous_instances = [""]') as (_server, channel):
        find_missing = f"{REAPI}.ContentAddressableStorage/FindMissingBlobs"
        assert (await answer(channel, find_missing))[0] is grpc.StatusCode.OK
        assert (await answer(channel, find_missing, bearer="wrong"))[0] is grpc.StatusCode.UNAUTHENTICATED
        other = re_pb2.FindMissingBlobsRequest(instance_name="main")
        assert short(await answer(channel, find_missing, other)) == REFUSE
        assert short(await answer(channel, f"{REAPI}.Execution/Execute")) == REFUSE


async def test_51_capabilities_say_what_the_caller_may_do(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, channel):
        for name, update, execute in (
            ("reader", False, False),
            ("builder", False, True),
            ("writer", True, False),
            ("everything", True, True),
        ):
            _, _, data = await answer(channel, f"{REAPI}.Capabilities/GetCapabilities", bearer=token(name))
            told = re_pb2.ServerCapabilities.FromString(data)
            assert told.cache_capabilities.action_cache_update_capabilities.update_enabled is update
            assert told.execution_capabilities.exec_enabled is execute


async def test_the_claims_of_a_signed_token_give_rights_and_instances(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, channel):
        bearer = KEY.token(rexec_rights=["update_action_cache"], rexec_instances=["main"])
        update = f"{REAPI}.ActionCache/UpdateActionResult"
        assert (
            short(await answer(channel, update, re_pb2.UpdateActionResultRequest(instance_name="main"), bearer)) == ASK
        )
        assert short(await answer(channel, update, re_pb2.UpdateActionResultRequest(), bearer)) == REFUSE
        assert short(await answer(channel, f"{REAPI}.Execution/Execute", b"", bearer)) == REFUSE


async def test_who_may_use_one_instance_learns_nothing_of_others(tmp_path: Path) -> None:
    async with serving(tmp_path) as (_server, channel):
        find_missing = f"{REAPI}.ContentAddressableStorage/FindMissingBlobs"
        for name, expected in (("other", ASK), ("main", REFUSE), ("", REFUSE), ("no such thing", REFUSE)):
            request = re_pb2.FindMissingBlobsRequest(instance_name=name)
            assert short(await answer(channel, find_missing, request, token("elsewhere"))) == expected
        read = bytestream_pb2.ReadRequest(resource_name=f"main/{BLOB}")
        assert short(await answer(channel, "/google.bytestream.ByteStream/Read", read, token("elsewhere"))) == REFUSE
        execute = re_pb2.ExecuteRequest(instance_name="main")
        assert short(await answer(channel, f"{REAPI}.Execution/Execute", execute, token("elsewhere"))) == REFUSE


async def queued(channel: aio.Channel, instance_name: str, bearer: str) -> tuple[re_pb2.ExecuteRequest, str]:
    """An action that waits for a worker, and the name of its operation."""
    store = RemoteStore(channel, instance_name, [("authorization", f"Bearer {bearer}")])
    command = re_pb2.Command(arguments=["true"]).SerializeToString()
    action = re_pb2.Action(
        command_digest=Digest.of(command).to_proto(), input_root_digest=Digest.of(b"").to_proto()
    ).SerializeToString()
    assert await store.write_many([(Digest.of(data), data) for data in (command, action)]) == {}
    request = re_pb2.ExecuteRequest(instance_name=instance_name, action_digest=Digest.of(action).to_proto())
    code, text, data = await answer(channel, f"{REAPI}.Execution/Execute", request, bearer)
    assert code is grpc.StatusCode.OK, text
    return request, operations_pb2.Operation.FromString(data).name


async def test_25_operations_are_shown_to_those_who_may_use_their_instance(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, channel):
        request, name = await queued(channel, "main", token("builder"))
        calls: dict[str, Message] = {
            "Execution.Execute": request,
            "Execution.WaitExecution": re_pb2.WaitExecutionRequest(name=name),
            "Operations.GetOperation": operations_pb2.GetOperationRequest(name=name),
            "Operations.ListOperations": operations_pb2.ListOperationsRequest(name="main"),
            "Operations.CancelOperation": operations_pb2.CancelOperationRequest(name=name),
            "Operations.DeleteOperation": operations_pb2.DeleteOperationRequest(name=name),
            "Operations.WaitOperation": operations_pb2.WaitOperationRequest(name=name),
        }
        for rpc, message in calls.items():
            for stranger in ("elsewhere", "reader", "worker"):
                assert (rpc, short(await answer(channel, paths(server)[rpc], message, token(stranger)))) == (
                    rpc,
                    REFUSE,
                )
        for rpc in ("Operations.GetOperation", "Execution.WaitExecution", "Execution.Execute"):
            code, _text, data = await answer(channel, paths(server)[rpc], calls[rpc], token("everything"))
            assert code is grpc.StatusCode.OK
            assert not operations_pb2.Operation.FromString(data).done
        own = operations_pb2.ListOperationsRequest(name="other")
        code, _text, data = await answer(channel, paths(server)["Operations.ListOperations"], own, token("elsewhere"))
        assert (code, operations_pb2.ListOperationsResponse.FromString(data).operations) == (grpc.StatusCode.OK, [])


@pytest.mark.parametrize(
    ("names", "expected"), [([], ASK), (["other"], ASK), (["main"], REFUSE), (["other", "main"], REFUSE)]
)
async def test_a_worker_serves_the_instances_that_it_may_use(tmp_path: Path, names: list[str], expected: str) -> None:
    hello = worker_pb2.Hello(worker_name="w", session_id="s", slots=1, instance_names=names)
    async with serving(tmp_path) as (server, channel):
        attach = paths(server)["Workers.Attach"]
        assert short(await answer(channel, attach, worker_pb2.FromWorker(hello=hello), token("elsewhere"))) == expected


async def test_through_the_unix_socket_the_servers_own_user_may_do_everything(tmp_path: Path) -> None:
    async with serving(tmp_path, "anonymous = []") as (server, _), aio.insecure_channel(f"unix:{server.socket}") as own:
        for rpc, path in paths(server).items():
            assert (rpc, short(await answer(own, path, NEEDED[rpc][1]))) == (rpc, ASK)


async def test_a_token_that_is_taken_off_the_list_counts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rexec.auth.watched_file.LOOK_SECONDS", 0.0)
    path = f"{REAPI}.Capabilities/GetCapabilities"
    async with serving(tmp_path) as (_server, channel):
        assert (await answer(channel, path, bearer=token("reader")))[0] is grpc.StatusCode.OK
        (tmp_path / "tokens.toml").write_text("")
        assert (await answer(channel, path, bearer=token("reader")))[0] is grpc.StatusCode.UNAUTHENTICATED


async def test_the_log_says_why_and_never_the_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expired = KEY.token(exp=1)
    async with serving(tmp_path) as (_server, channel):
        path = f"{REAPI}.Execution/Execute"
        for bearer in (expired, "secret-of-mine", token("reader")):
            await answer(channel, path, bearer=bearer)
        await answer(channel, path)
    logged = "".join(capsys.readouterr())
    assert "ExpiredSignatureError" in logged
    assert "no credentials" in logged
    assert "caller=reader" in logged
    assert not any(secret in logged for secret in ("secret-of-mine", token("reader"), *expired.split(".")))
