"""A scheduler and its frontends in one process: how they find, know and trust each other. integration/test_roles.py has them
as real processes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import aio

from cas.digest import Digest
from cas.remote import RemoteStore
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of
from protos.rexec.scheduler.v1 import autoscaling_pb2, fleet_pb2, status_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec import relay
from rexec.config import Config, parse
from rexec.edge import CannotServe, Running
from rexec.frontend_role import running_frontend
from rexec.role_commands import frontend_greeting, scheduler_greeting
from rexec.scheduler_role import running_scheduler
from rexec.server import running
from tests.edge.certificates import Authority
from tests.edge.test_secure_worker import GUARD_SECONDS, executed, worker
from tests.edge.test_server import fetch, free_port

LISTEN = '[server]\nlisten = ["127.0.0.1:0"]\n'


def scheduler_config(state: Path, more: str = "") -> Config:
    return parse(f'state_dir = "{state}"\n{LISTEN}{more}')


def frontend_config(where: str, more: str = "", server: str = "") -> Config:
    return parse(f'{LISTEN}{server}\n[frontend]\nschedulers = ["{where}"]\nwait_seconds = 5\n{more}')


@asynccontextmanager
async def apart(tmp_path: Path, frontends: int = 1, more: str = "") -> AsyncIterator[tuple[Running, list[aio.Channel]]]:
    """A scheduler, and a channel to each of its frontends."""
    async with running_scheduler(scheduler_config(tmp_path / "state", more)) as scheduler:
        config = frontend_config(f"grpc://{scheduler.addresses[0]}")
        channels = []
        async with asyncio.timeout(GUARD_SECONDS), AsyncExitStack() as stack:
            for _ in range(frontends):
                frontend = await stack.enter_async_context(running_frontend(config))
                channels.append(await stack.enter_async_context(aio.insecure_channel(frontend.addresses[0])))
            yield scheduler, channels


async def ask(
    channel: aio.Channel, module: Any, service: str, name: str, request: Message, headers: Sequence[Any] = ()
) -> Any:
    method = methods_of(module, service)[name]
    call: Any = channel.unary_unary(method.path, method.request_type.SerializeToString, method.response_type.FromString)
    return await call(request, timeout=GUARD_SECONDS, metadata=tuple(headers))


async def test_frontends_share_blobs_results_and_assets(tmp_path: Path) -> None:
    data = b"shared"
    digest = Digest.of(data)
    async with apart(tmp_path, frontends=2) as (_scheduler, (one, two)):
        assert await RemoteStore(one).write_many([(digest, data)]) == {}
        assert await RemoteStore(two).read_many([digest]) == {digest: data}
        result = re_pb2.ActionResult(stdout_digest=digest.to_proto())
        update = re_pb2.UpdateActionResultRequest(action_digest=digest.to_proto(), action_result=result)
        await ask(one, re_pb2, "ActionCache", "UpdateActionResult", update)
        get = re_pb2.GetActionResultRequest(action_digest=digest.to_proto())
        assert (await ask(two, re_pb2, "ActionCache", "GetActionResult", get)).stdout_digest == digest.to_proto()
        push = remote_asset_pb2.PushBlobRequest(uris=["urn:pushed"], blob_digest=digest.to_proto())
        await ask(one, remote_asset_pb2, "Push", "PushBlob", push)
        wanted = remote_asset_pb2.FetchBlobRequest(uris=["urn:pushed"])
        assert (await ask(two, remote_asset_pb2, "Fetch", "FetchBlob", wanted)).blob_digest == digest.to_proto()


async def test_workers_are_drained_through_a_frontend(tmp_path: Path) -> None:
    async with apart(tmp_path) as (scheduler, (channel,)):
        drain = fleet_pb2.DrainWorkersRequest(names=["w"], grace_seconds=5)
        assert (await ask(channel, fleet_pb2, "Fleet", "DrainWorkers", drain)).unknown == ["w"]
        async with aio.insecure_channel(scheduler.addresses[0]) as direct:
            method = methods_of(worker_pb2, "Workers")["Attach"]
            attach: Any = direct.stream_stream(
                method.path, method.request_type.SerializeToString, method.response_type.FromString
            )
            stream = attach()
            hello = worker_pb2.Hello(worker_name="w", session_id="s", slots=1)
            await stream.write(worker_pb2.FromWorker(hello=hello))
            assert (await stream.read()).HasField("welcome")
            answer = await ask(channel, fleet_pb2, "Fleet", "DrainWorkers", drain)
            assert [(worker.name, worker.kept) for worker in answer.workers] == [("w", 0)]
            assert (await stream.read()).drain.grace.ToSeconds() == 5
            stream.cancel()


async def test_the_pools_of_an_autoscaler_are_shown_through_a_frontend_and_its_idle_workers_leave(
    tmp_path: Path,
) -> None:
    async with apart(tmp_path) as (scheduler, (channel,)), aio.insecure_channel(scheduler.addresses[0]) as direct:
        workers, autoscalers = methods_of(worker_pb2, "Workers")["Attach"], methods_of(autoscaling_pb2, "Autoscaling")
        attach: Any = direct.stream_stream(
            workers.path, workers.request_type.SerializeToString, workers.response_type.FromString
        )
        worker = attach()
        await worker.write(worker_pb2.FromWorker(hello=worker_pb2.Hello(worker_name="w", session_id="s", slots=1)))
        assert (await worker.read()).HasField("welcome")
        method = autoscalers["Follow"]
        follow: Any = direct.stream_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        stream = follow()
        pool = autoscaling_pb2.Pool(name="linux", max=3, target=2, problem="no nodes", cost_today=1.5)
        await stream.write(autoscaling_pb2.FromAutoscaler(pools=autoscaling_pb2.Pools(pools=[pool])))
        assert [each.name for each in (await stream.read()).workers] == ["w"]
        leave = autoscaling_pb2.Leave(names=["w"], only_idle=True, reason="too many")
        await stream.write(autoscaling_pb2.FromAutoscaler(leave=leave))
        assert (await worker.read()).drain.reason == "drained: too many"
        await worker.done_writing()
        assert await worker.read() is aio.EOF
        async with asyncio.timeout(GUARD_SECONDS):
            while (await stream.read()).workers:
                pass
        shown = await ask(channel, status_pb2, "Status", "GetOverview", status_pb2.GetOverviewRequest())
        assert [(each.name, each.target, each.problem) for each in shown.pools] == [("linux", 2, "no nodes")]
        stream.cancel()


async def test_what_the_scheduler_refuses_comes_back_with_its_details(tmp_path: Path) -> None:
    absent = Digest.of(b"absent")
    request = remote_asset_pb2.PushBlobRequest(uris=["urn:x"], blob_digest=absent.to_proto())
    async with apart(tmp_path) as (_scheduler, (channel,)):
        with pytest.raises(aio.AioRpcError) as caught:
            await ask(channel, remote_asset_pb2, "Push", "PushBlob", request)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert absent.hash.encode() in dict(caught.value.trailing_metadata() or ())["grpc-status-details-bin"]


@pytest.mark.parametrize("tool", ["bazel", "other"])
async def test_the_scheduler_knows_which_tool_asks_a_frontend(tmp_path: Path, tool: str) -> None:
    """Bazel up to 5 overlooks a failure that is part of the answer, so it gets it as that of the call."""
    said = re_pb2.RequestMetadata(tool_details=re_pb2.ToolDetails(tool_name=tool)).SerializeToString()
    headers = [("build.bazel.remote.execution.v2.requestmetadata-bin", said)]
    wanted = remote_asset_pb2.FetchBlobRequest(uris=[f"http://127.0.0.1:{free_port()}/nothing"])
    async with apart(tmp_path, more="[assets]\nfetch = true") as (_scheduler, (channel,)):
        fetching = ask(channel, remote_asset_pb2, "Fetch", "FetchBlob", wanted, headers)
        if tool == "bazel":
            with pytest.raises(aio.AioRpcError):
                await fetching
        else:
            assert (await fetching).status.code


async def test_a_frontend_offers_execution_before_its_scheduler_is_there_and_says_that_it_is_not(
    tmp_path: Path,
) -> None:
    port = free_port()
    config = frontend_config("grpc://127.0.0.1:1", server=f'metrics_listen = "127.0.0.1:{port}"')
    async with running_frontend(config) as frontend, aio.insecure_channel(frontend.addresses[0]) as channel:
        answer = await ask(channel, re_pb2, "Capabilities", "GetCapabilities", re_pb2.GetCapabilitiesRequest())
        assert answer.execution_capabilities.exec_enabled
        with pytest.raises(Exception, match="503"):
            await fetch(f"http://127.0.0.1:{port}/readyz")
        assert "rexec_rpcs_total" in await fetch(f"http://127.0.0.1:{port}/metrics")


async def test_a_worker_that_never_says_who_it_is_does_not_keep_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "HELLO_SECONDS", 0.01)
    method = methods_of(worker_pb2, "Workers")["Attach"]
    async with apart(tmp_path) as (_scheduler, (channel,)):
        attach: Any = channel.stream_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        with pytest.raises(aio.AioRpcError, match="nothing heard") as caught:
            await attach().read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_attaches_through_a_frontend_with_tls_and_tokens_all_the_way(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_pair, client_pair = authority.pair("server"), authority.pair("client")
    tokens = {"frontend": ["front"], "w": ["work"], "client": ["execute"]}
    (tmp_path / "tokens.toml").write_text(
        "".join(
            f'[[token]]\nidentity = "{name}"\nsha256 = "{hashlib.sha256(name.encode()).hexdigest()}"\n'
            f"rights = {json.dumps(rights)}\n"
            for name, rights in tokens.items()
        )
    )
    for name in tokens:
        (tmp_path / name).write_text(name)
    secure = (
        f'[server.tls]\ncertificate = "{server_pair.certificate}"\nkey = "{server_pair.key}"\n'
        f'client_ca = "{authority.file}"\n[auth.tokens]\nfile = "{tmp_path}/tokens.toml"\n'
    )
    shown = (
        f'[connection]\ntls_ca = "{authority.file}"\ntls_certificate = "{client_pair.certificate}"\n'
        f'tls_key = "{client_pair.key}"\ntoken_file = "{tmp_path}/frontend"\n'
    )
    credentials = grpc.ssl_channel_credentials(
        authority.file.read_bytes(), client_pair.key.read_bytes(), client_pair.certificate.read_bytes()
    )
    async with (
        asyncio.timeout(GUARD_SECONDS),
        running_scheduler(scheduler_config(tmp_path / "state", secure)) as scheduler,
        running_frontend(frontend_config(f"grpcs://{scheduler.addresses[0]}", secure + shown)) as frontend,
    ):
        where = "--server", f"grpcs://{frontend.addresses[0]}", "--work-dir", str(tmp_path / "work")
        trust = "--tls-ca", str(authority.file), "--token-file", str(tmp_path / "w")
        pair = "--tls-certificate", str(client_pair.certificate), "--tls-key", str(client_pair.key)
        async with worker(*where, *trust, *pair), _with_token(frontend.addresses[0], credentials, "client") as channel:
            response = await executed(channel, re_pb2.Command(arguments=["/bin/echo", "through both"]))
    assert response.result.stdout_raw == b"through both\n"


def _with_token(address: str, credentials: grpc.ChannelCredentials, token: str) -> aio.Channel:
    bearer = grpc.access_token_call_credentials(token)
    return aio.secure_channel(address, grpc.composite_channel_credentials(credentials, bearer))


async def test_a_frontend_without_the_right_to_be_one_is_told_so(tmp_path: Path) -> None:
    port = free_port()
    config = scheduler_config(tmp_path, '[auth]\nanonymous = ["read", "execute", "update_action_cache", "work"]')
    async with running_scheduler(config) as scheduler:
        metrics = f'metrics_listen = "127.0.0.1:{port}"'
        given = parse(
            f'{LISTEN}{metrics}\n[frontend]\nschedulers = ["grpc://{scheduler.addresses[0]}"]\nwait_seconds = 3600\n'
        )
        async with running_frontend(given) as running_, aio.insecure_channel(running_.addresses[0]) as channel:
            with pytest.raises(
                aio.AioRpcError, match="refuses this frontend: PERMISSION_DENIED: not allowed"
            ) as caught:
                await ask(channel, status_pb2, "Status", "GetOverview", status_pb2.GetOverviewRequest())
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_frontend_whose_scheduler_is_away_names_it_before_the_client_gives_up() -> None:
    where = "grpc://127.0.0.1:1"
    config = parse(f'{LISTEN}\n[frontend]\nschedulers = ["{where}"]\nwait_seconds = 3600\n')
    method = methods_of(status_pb2, "Status")["GetOverview"]
    async with running_frontend(config) as running_, aio.insecure_channel(running_.addresses[0]) as channel:
        call: Any = channel.unary_unary(method.path, method.request_type.SerializeToString)
        with pytest.raises(aio.AioRpcError, match=f"the scheduler {where} is not reached") as caught:
            await call(status_pb2.GetOverviewRequest(), timeout=3)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_worker_that_says_nonsense_to_a_frontend_is_refused_there(tmp_path: Path) -> None:
    async with apart(tmp_path) as (_scheduler, (channel,)):
        call: Any = channel.stream_stream("/rexec.worker.v1.Workers/Attach", worker_pb2.FromWorker.SerializeToString)
        stream = call(timeout=GUARD_SECONDS)
        await stream.write(worker_pb2.FromWorker())
        with pytest.raises(aio.AioRpcError, match="expected hello"):
            await stream.read()
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_server_can_keep_everything_at_another_one(tmp_path: Path) -> None:
    data = b"far away"
    async with running(parse(f'state_dir = "{tmp_path}/far"\nslots = 0\n{LISTEN}')) as far:
        near = f'[store]\nkind = "remote"\naddress = "grpc://{far.addresses[0]}"\n'
        for role in (
            running(parse(f'state_dir = "{tmp_path}/near"\nslots = 0\n{LISTEN}{near}')),
            running_frontend(frontend_config("grpc://127.0.0.1:1", near)),
        ):
            async with role as server, aio.insecure_channel(server.addresses[0]) as channel:
                assert await RemoteStore(channel).write_many([(Digest.of(data), data)]) == {}
        async with aio.insecure_channel(far.addresses[0]) as channel:
            assert await RemoteStore(channel).read_many([Digest.of(data)]) == {Digest.of(data): data}
        # A scheduler that keeps nothing offers nothing.
        async with running_scheduler(scheduler_config(tmp_path / "scheduler", near)) as scheduler:
            assert "ContentAddressableStorage" not in {service.name for service in scheduler.services}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[store]\nkind = "remote"', "expected an address"),
        ('[store]\nkind = "remote"\naddress = "grpcs://h:1"\n[store.connection]\ntls_ca = "/absent"', "/absent"),
    ],
)
async def test_a_store_elsewhere_that_cannot_be_reached_at_all_is_complained_of(
    tmp_path: Path, text: str, said: str
) -> None:
    with pytest.raises(CannotServe, match=said):
        async with running_scheduler(scheduler_config(tmp_path, text)):
            pass


async def test_a_frontend_of_nobody_is_complained_of() -> None:
    with pytest.raises(CannotServe, match="no scheduler is named"):
        async with running_frontend(parse(LISTEN)):
            pass


def test_the_greetings_say_how_to_go_on_and_what_others_may_do() -> None:
    scheduler = scheduler_greeting(parse('state_dir = "/data"'), ("10.0.0.1:8981",))
    assert "rexec frontend --scheduler grpc://10.0.0.1:8981" in scheduler
    assert "rexec worker --server grpc://10.0.0.1:8981" in scheduler
    assert "whoever does may run commands on the workers and attach workers" in scheduler
    only_front = scheduler_greeting(parse('[auth]\nanonymous = ["front"]'), ("10.0.0.1:8981",))
    assert "whoever does may run commands on the workers and attach workers" in only_front
    frontend = frontend_greeting(frontend_config("grpc://10.0.0.1:8981"), ("10.0.0.2:8980",))
    assert "for the scheduler at grpc://10.0.0.1:8981" in frontend
    assert "--remote_executor=grpc://10.0.0.2:8980" in frontend
    assert "whoever does may run commands here and attach workers" in frontend
