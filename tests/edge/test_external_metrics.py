"""The external metrics API as an API server asks for it: documents, figures, refusals, and who gets them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from grpc import aio

from cas.errors import MalformedRequest
from protos.keda import externalscaler_pb2 as keda_pb2
from protos.methods import methods_of
from rexec.cli import main
from rexec.config import Config, parse
from rexec.external_metrics import GROUP_VERSION, Answer, Unanswered, answer, quantity, selected
from rexec.external_metrics_command import CannotAnswer, answering
from rexec.external_metrics_port import MAX_CONNECTIONS, MAX_HEAD_BYTES, MetricsPort
from rexec.frontend_role import running_frontend
from rexec.keda import FIGURES, WANTED
from rexec.scheduler_role import running_scheduler
from rexec.tls_settings import TlsSettings
from tests.edge.certificates import Authority, Pair
from tests.edge.test_roles import ask, frontend_config, scheduler_config
from tests.edge.test_server import free_port

GUARD_SECONDS = 30
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1)))
VALUES = f"/apis/{GROUP_VERSION}/namespaces/builds"


class Scheduler:
    """Has one figure for everything, or a reason not to say it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.value = 3.0
        self.failure: Exception | None = None

    async def ask(self, metric: str, labels: Mapping[str, str]) -> float:
        self.asked.append((metric, dict(labels)))
        if self.failure is not None:
            raise self.failure
        return self.value


async def said(target: str, scheduler: Scheduler | None = None, method: str = "GET") -> Answer:
    return await answer(method, target, (scheduler or Scheduler()).ask, NOW)


def status_of(found: Answer) -> tuple[int, str, str]:
    assert isinstance(found.body, dict)
    assert found.body["kind"] == "Status"
    assert found.body["status"] == "Failure"
    assert found.body["code"] == found.status
    return found.status, found.body["reason"], found.body["message"]


# What is answered


async def test_discovery_leads_from_the_groups_to_the_metrics() -> None:
    groups = (await said("/apis")).body
    assert isinstance(groups, dict)
    (group,) = groups["groups"]
    version = group["preferredVersion"]["groupVersion"]
    assert version == GROUP_VERSION == "external.metrics.k8s.io/v1beta1"
    assert (await said(f"/apis/{group['name']}/")).body == {"kind": "APIGroup", "apiVersion": "v1", **group}
    resources = (await said(f"/apis/{version}?timeout=32s")).body
    assert isinstance(resources, dict)
    assert resources["groupVersion"] == version
    assert [resource["name"] for resource in resources["resources"]] == list(FIGURES)
    assert all(resource["namespaced"] and resource["verbs"] == ["get"] for resource in resources["resources"])


async def test_a_figure_is_a_list_of_one_value() -> None:
    scheduler = Scheduler()
    found = await said(f"{VALUES}/{WANTED}?labelSelector=pool%3Dlinux%2Cproperty.gpu%3Da100", scheduler)
    assert found == Answer(
        200,
        {
            "kind": "ExternalMetricValueList",
            "apiVersion": GROUP_VERSION,
            "metadata": {},
            "items": [
                {
                    "metricName": WANTED,
                    "metricLabels": {"pool": "linux", "property.gpu": "a100"},
                    "timestamp": "2026-01-02T02:04:05Z",
                    "value": "3",
                }
            ],
        },
    )
    assert scheduler.asked == [(WANTED, {"pool": "linux", "property.gpu": "a100"})]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (7.0, "7"), (1.5, "1500m"), (0.0004, "0"), (2.9996, "3"), (1e300, "9000000000000000"), (-1.0, "0")],
)
def test_numbers_are_quantities(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(
    ("query", "labels"),
    [
        ("", {}),
        ("labelSelector=", {}),
        ("labelSelector=pool%3Dlinux&timeout=5s", {"pool": "linux"}),
        ("labelSelector=pool%3D%3Dlinux%2C+instance%3D", {"pool": "linux", "instance": ""}),
        ("labelSelector=pool+in+(linux)", {"pool": "linux"}),
        ("labelSelector=pool%3Dlinux%2Cpool%3Dlinux", {"pool": "linux"}),
    ],
)
def test_selectors_by_equality_are_understood(query: str, labels: dict[str, str]) -> None:
    assert selected(query) == labels


@pytest.mark.parametrize(
    "selector",
    [
        "pool",
        "!pool",
        "pool!%3Dlinux",
        "pool+in+(a,b)",
        "pool+notin+(a)",
        "%3Dlinux",
        "pool%3Da%2Cpool%3Db",
        ",",
        "pool%3Da%3Db",
        "x" * 10_000,
    ],
)
async def test_other_selectors_are_refused(selector: str) -> None:
    scheduler = Scheduler()
    code, reason, message = status_of(await said(f"{VALUES}/{WANTED}?labelSelector={selector}", scheduler))
    assert (code, reason) == (400, "BadRequest")
    assert "labelSelector" in message
    assert len(message) < 400
    assert scheduler.asked == []


async def test_labels_that_mean_nothing_are_refused_by_name() -> None:
    scheduler = Scheduler()
    code, _, message = status_of(await said(f"{VALUES}/{WANTED}?labelSelector=slotsPerWorker%3Dmany", scheduler))
    assert (code, message) == (400, "slotsPerWorker is 'many', expected 1 to 4096")
    assert status_of(await said(f"{VALUES}/{WANTED}?labelSelector=app%3Drexec"))[0] == 400
    assert status_of(await said(f"{VALUES}/{WANTED}?" + "&".join("a=b" for _ in range(30))))[0] == 400
    assert scheduler.asked == []
    scheduler.failure = MalformedRequest("instance is missing")
    assert status_of(await said(f"{VALUES}/{WANTED}", scheduler)) == (400, "BadRequest", "instance is missing")


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/api",
        "/openapi/v2",
        "/apis/metrics.k8s.io/v1beta1",
        f"/apis/{GROUP_VERSION}/namespaces",
        f"/apis/{GROUP_VERSION}/nodes/builds/{WANTED}",
        f"{VALUES}/rexec_unknown",
        f"{VALUES}/{WANTED}/more",
        f"/apis/{GROUP_VERSION}/namespaces/..%2f/{WANTED}",
        f"/apis/{GROUP_VERSION}/namespaces//{WANTED}",
        "*",
    ],
)
async def test_what_is_not_there_is_not_found(target: str) -> None:
    assert status_of(await said(target))[:2] == (404, "NotFound")


async def test_an_unknown_metric_is_told_which_there_are() -> None:
    assert ", ".join(FIGURES) in status_of(await said(f"{VALUES}/cpu"))[2]


async def test_nothing_can_be_written() -> None:
    assert status_of(await said(f"{VALUES}/{WANTED}", method="DELETE"))[:2] == (405, "MethodNotAllowed")


async def test_a_scheduler_that_is_away_is_no_figure() -> None:
    scheduler = Scheduler()
    scheduler.failure = Unanswered("the scheduler is away")
    code, reason, message = status_of(await said(f"{VALUES}/{WANTED}", scheduler))
    assert (code, reason, message) == (503, "ServiceUnavailable", "the scheduler is away")


# The port


@asynccontextmanager
async def listening(
    pair: Pair, scheduler: Scheduler | None = None, ca: Path | None = None, names: tuple[str, ...] = ()
) -> AsyncIterator[int]:
    tls = TlsSettings(certificate=str(pair.certificate), key=str(pair.key), client_ca=str(ca or ""))
    async with MetricsPort(tls, names, (scheduler or Scheduler()).ask).listening("127.0.0.1:0") as port:
        yield port


def trusting(authority: Authority, shown: Pair | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.file)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


async def exchanged(port: int, context: ssl.SSLContext, request: bytes) -> tuple[int, str]:
    """The status and the body of the answer; 0 if there is none. Raises OSError if the connection is refused."""
    async with asyncio.timeout(GUARD_SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        try:
            writer.write(request)
            data = await reader.read()
        finally:
            writer.close()
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, body.decode()


async def get(port: int, context: ssl.SSLContext, path: str) -> tuple[int, Any]:
    status, body = await exchanged(port, context, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return status, json.loads(body) if body.startswith("{") else body


async def is_refused(port: int, context: ssl.SSLContext) -> bool:
    """Whether the connection ends without an answer: by an error, or without a word."""
    try:
        return await exchanged(port, context, b"GET /healthz HTTP/1.1\r\n\r\n") == (0, "")
    except OSError:
        return True


async def test_figures_are_served_over_https(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with listening(authority.pair("server")) as port:
        status, body = await get(port, trusting(authority), f"{VALUES}/{WANTED}?labelSelector=pool%3Dlinux")
        assert (status, body["items"][0]["value"]) == (200, "3")
        assert await get(port, trusting(authority), "/readyz?verbose") == (200, "ok\n")
        assert await exchanged(port, trusting(authority), b"HEAD /apis HTTP/1.1\r\n\r\n") == (200, "")


async def test_only_the_front_proxy_and_probes_are_answered(tmp_path: Path) -> None:
    authority, front, other = Authority(tmp_path), Authority(tmp_path, "front"), Authority(tmp_path, "other")
    scheduler = Scheduler()
    async with listening(authority.pair("server"), scheduler, front.file, ("front-proxy-client",)) as port:
        path = f"{VALUES}/{WANTED}"
        for context in (trusting(authority), trusting(authority, front.pair("somebody"))):
            status, body = await get(port, context, path)
            assert (status, body["reason"]) == (403, "Forbidden")
            assert await get(port, context, "/livez") == (200, "ok\n")
        stranger = other.pair("front-proxy-client")
        assert await is_refused(port, trusting(authority, stranger))
        assert scheduler.asked == []
        assert (await get(port, trusting(authority, front.pair("front-proxy-client")), path))[0] == 200


async def test_any_name_will_do_if_none_is_given(tmp_path: Path) -> None:
    authority, front = Authority(tmp_path), Authority(tmp_path, "front")
    async with listening(authority.pair("server"), None, front.file) as port:
        assert (await get(port, trusting(authority), "/apis"))[0] == 403
        assert (await get(port, trusting(authority, front.pair("anybody")), "/apis"))[0] == 200


async def test_a_new_certificate_counts_from_the_next_connection(tmp_path: Path) -> None:
    old, new, front = Authority(tmp_path, "old"), Authority(tmp_path, "new"), Authority(tmp_path, "front")
    pair, client = old.pair("server"), front.pair("proxy")
    async with listening(pair, None, front.file) as port:
        assert (await get(port, trusting(old, client), "/apis"))[0] == 200
        new.pair("server", into=pair)
        assert (await get(port, trusting(new, client), "/apis"))[0] == 200
        assert (await get(port, trusting(new), "/apis"))[0] == 403
        with pytest.raises(ssl.SSLCertVerificationError):
            await get(port, trusting(old, client), "/apis")
        pair.key.write_text("rubbish")
        assert (await get(port, trusting(new, client), "/apis"))[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / SPDY/3\r\n\r\n",
        b"\xff\xfe \xff HTTP/1.1 x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n",
    ],
    ids=["empty", "short", "other", "bytes", "large"],
)  # fmt: skip
async def test_what_is_not_http_is_told_so(tmp_path: Path, request_: bytes) -> None:
    authority = Authority(tmp_path)
    async with listening(authority.pair("server")) as port:
        assert (await exchanged(port, trusting(authority), request_))[0] == 400
        assert (await get(port, trusting(authority), "/healthz"))[0] == 200


async def test_only_so_many_connections_are_kept(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with listening(authority.pair("server")) as port, asyncio.timeout(GUARD_SECONDS):
        context = trusting(authority)
        kept = [
            await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
            for _ in range(MAX_CONNECTIONS)
        ]
        assert await is_refused(port, context)
        reader, writer = kept.pop()
        writer.write(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        for _, writer in kept:
            writer.close()


async def test_a_fault_of_ours_says_nothing_of_itself(tmp_path: Path) -> None:
    authority, scheduler = Authority(tmp_path), Scheduler()
    scheduler.failure = RuntimeError("secret")
    async with listening(authority.pair("server"), scheduler) as port:
        status, body = await get(port, trusting(authority), f"{VALUES}/{WANTED}")
    assert status == 500
    assert "secret" not in json.dumps(body)


# The process


async def test_figures_are_the_schedulers_through_whichever_server_answers(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    tls = TlsSettings(certificate=str(pair.certificate), key=str(pair.key))
    path = f"{VALUES}/{WANTED}?labelSelector=pool%3Dlinux"
    nobody = f"grpc://127.0.0.1:{free_port()}"
    async with asyncio.timeout(2 * GUARD_SECONDS), running_scheduler(scheduler_config(tmp_path / "state")) as scheduler:
        where = f"grpc://{scheduler.addresses[0]}"
        async with running_frontend(frontend_config(where)) as frontend:
            servers = nobody, f"grpc://{frontend.addresses[0]}"
            async with answering(servers, Config(), "127.0.0.1:0", tls) as ports:
                for _ in range(2):
                    status, body = await get(ports.https, trusting(authority), path)
                    assert (status, body["items"][0]["value"]) == (200, "0")
    async with answering([nobody], Config(), "127.0.0.1:0", tls) as ports:
        status, body = await get(ports.https, trusting(authority), path)
        assert status == 503
        assert nobody in body["message"]


async def test_files_that_are_not_there_and_a_port_that_is_taken_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    tls = TlsSettings(certificate=str(pair.certificate), key=str(pair.key))
    absent = TlsSettings(certificate=f"{tmp_path}/absent", key=str(pair.key))
    with pytest.raises(CannotAnswer, match="absent"):
        async with answering(["127.0.0.1:1"], Config(), "127.0.0.1:0", absent):
            raise AssertionError("it answers")
    async with answering(["127.0.0.1:1"], Config(), "127.0.0.1:0", tls) as ports:
        with pytest.raises(CannotAnswer):
            async with answering(["127.0.0.1:1"], Config(), f"127.0.0.1:{ports.https}", tls):
                raise AssertionError("it answers")


async def test_keda_asks_with_the_token_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame")
    sha256 = hashlib.sha256(b"sesame").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[[token]]\nidentity = "me"\nsha256 = "{sha256}"\nrights = ["operate"]\n')
    tokens = f'[auth.tokens]\nfile = "{tmp_path}/tokens.toml"'
    config = parse(f'[connection]\ntoken_file = "{tmp_path}/token"')
    linux = keda_pb2.ScaledObjectRef(scalerMetadata={"pool": "linux", "scalerAddress": "x:1"})
    nobody = f"grpc://127.0.0.1:{free_port()}"
    method = methods_of(keda_pb2, "ExternalScaler")["StreamIsActive"]
    async with asyncio.timeout(2 * GUARD_SECONDS), AsyncExitStack() as stack:
        scheduler = running_scheduler(scheduler_config(tmp_path / "state", tokens))
        where = f"grpc://{(await stack.enter_async_context(scheduler)).addresses[0]}"
        process = answering([nobody, where], config, "", TlsSettings(), keda_listen="127.0.0.1:0")
        ports = await stack.enter_async_context(process)
        assert ports.https == 0
        channel = await stack.enter_async_context(aio.insecure_channel(f"127.0.0.1:{ports.keda}"))
        direct = await stack.enter_async_context(aio.insecure_channel(where.removeprefix("grpc://")))
        with pytest.raises(aio.AioRpcError) as refusal:
            await ask(direct, keda_pb2, "ExternalScaler", "IsActive", linux)
        assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED
        told: Any = channel.unary_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )(linux)
        assert not (await told.read()).result
        assert not (await ask(channel, keda_pb2, "ExternalScaler", "IsActive", linux)).result
        assert len((await ask(channel, keda_pb2, "ExternalScaler", "GetMetricSpec", linux)).metricSpecs) == 1
        with pytest.raises(aio.AioRpcError) as refusal:
            await ask(channel, keda_pb2, "ExternalScaler", "GetMetrics", keda_pb2.GetMetricsRequest(metricName="cpu"))
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        told.cancel()


async def test_keda_is_told_that_no_server_answers(tmp_path: Path) -> None:
    nobody = f"grpc://127.0.0.1:{free_port()}"
    method = methods_of(keda_pb2, "ExternalScaler")["StreamIsActive"]
    linux = keda_pb2.ScaledObjectRef(scalerMetadata={"pool": "linux"})
    async with (
        asyncio.timeout(GUARD_SECONDS),
        answering([nobody], Config(), "", TlsSettings(), keda_listen="127.0.0.1:0") as ports,
        aio.insecure_channel(f"127.0.0.1:{ports.keda}") as channel,
    ):
        stream: Any = channel.unary_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        for call in (ask(channel, keda_pb2, "ExternalScaler", "IsActive", linux), stream(linux).read()):
            with pytest.raises(aio.AioRpcError) as refusal:
                await call
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            assert nobody in str(refusal.value.details())


def test_wrong_options_are_named(tmp_path: Path) -> None:
    certificate, key = ("--serving-certificate", "c"), ("--serving-key", "k")
    for options, named in (
        (("--server", "http://x:1", *certificate, *key), "http"),
        (("--server", "x:1", "--listen", "nowhere", *certificate, *key), "nowhere"),
        (("--server", "x:1", "--keda-listen", "nowhere"), "nowhere"),
        (("--server", "x:1", "--front-proxy-name", "me", *certificate, *key), "--front-proxy-ca"),
        (("--server", "x:1", "--front-proxy-ca", "f", "--keda-listen", "x:1"), "--serving-certificate"),
        (("--server", "x:1", *certificate), "--serving-key"),
        (("--server", "x:1"), "--keda-listen"),
        (("--server", "x:1", *certificate, *key), "c and k cannot be used"),
    ):
        ended = CliRunner().invoke(main, ["external-metrics", *options])
        assert ended.exit_code != 0
        assert named in ended.output
