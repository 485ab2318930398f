"""An autoscaler and a real scheduler: in one process, over gRPC, and with one that goes away."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from cas.connection_settings import ConnectionSettings
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec import autoscaling_source
from rexec.autoscale_command import running_autoscaler
from rexec.autoscale_telemetry import AutoscaleTelemetry
from rexec.autoscaling import CannotScale
from rexec.autoscaling_source import BrokerSource, RemoteSource
from rexec.config import parse
from rexec.connection import CannotConnect
from rexec.core import Core
from rexec.edge import CannotServe, Running
from rexec.server import running
from tests.edge.test_metrics import documented
from tests.edge.test_server import free_port

GUARD_SECONDS = 20


def pools(*names: str) -> autoscaling_pb2.FromAutoscaler:
    return autoscaling_pb2.FromAutoscaler(
        pools=autoscaling_pb2.Pools(pools=[autoscaling_pb2.Pool(name=name, max=1, slots=1) for name in names])
    )


class Seen:
    """The core of a server under test."""

    def __init__(self) -> None:
        self.core: Core | None = None

    @asynccontextmanager
    async def __call__(self, core: Core, _running: Running) -> AsyncIterator[None]:
        self.core = core
        yield

    async def knows(self, *pools: str) -> None:
        """Until its scheduler has heard of these pools, and of no others."""
        while self.pools != set(pools):  # noqa: ASYNC110  # nobody tells when they have changed
            await asyncio.sleep(0)

    @property
    def pools(self) -> set[str]:
        """Those that its scheduler knows."""
        assert self.core is not None
        return {pool.name for pool in self.core.broker._queue.state.fleet.pools}


@asynccontextmanager
async def server(state: Path, port: int = 0) -> AsyncIterator[tuple[Seen, str]]:
    seen = Seen()
    config = parse(f'state_dir = "{state}"\n[server]\nlisten = ["127.0.0.1:{port}"]\nstop_seconds = 0.1\n')
    async with asyncio.timeout(GUARD_SECONDS), running(config, seen) as answering:
        yield seen, f"grpc://{answering.addresses[0]}"


async def fetch(url: str) -> tuple[int, str]:
    """Status and body."""

    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=GUARD_SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_a_broker_in_this_process_says_what_waits_and_hears_of_pools(tmp_path: Path) -> None:
    async with server(tmp_path) as (seen, _address):
        assert seen.core is not None
        source = BrokerSource(seen.core.broker)
        await source.tell(pools("early"))
        async with aclosing(source.snapshots()) as snapshots:
            assert not (await anext(snapshots)).waiting
            assert seen.pools == {"early"}
            await source.tell(pools("late"))
            assert seen.pools == {"late"}
            # What it does not take is no reason to fail.
            await source.tell(pools("twice", "twice"))
            await source.tell(autoscaling_pb2.FromAutoscaler(leave=autoscaling_pb2.Leave(names=["nobody"])))


async def test_a_scheduler_elsewhere_is_told_of_the_pools_first(tmp_path: Path) -> None:
    async with server(tmp_path) as (seen, address):
        source = RemoteSource([address], ConnectionSettings())
        assert "not reached yet" in source.trouble
        await source.tell(pools("a"))
        async with aclosing(source.snapshots()) as snapshots:
            await anext(snapshots)
            assert source.trouble == ""
            await source.tell(pools("a", "b"))
            await seen.knows("a", "b")


async def test_what_is_told_while_the_scheduler_is_dialled_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(tmp_path) as (seen, address):
        source = RemoteSource([address], ConnectionSettings())
        await source.tell(pools("early"))
        write = source._write

        async def slowly(call: Any, message: autoscaling_pb2.FromAutoscaler) -> None:
            await write(call, message)
            if message == pools("early"):
                await source.tell(pools("late"))

        monkeypatch.setattr(source, "_write", slowly)
        async with aclosing(source.snapshots()) as snapshots:
            await anext(snapshots)
            await seen.knows("late")


async def test_a_scheduler_that_is_away_is_found_again_and_told_what_was_told_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoscaling_source, "LONGEST_PAUSE_SECONDS", 0.1)
    port = free_port()
    source = RemoteSource([f"grpc://127.0.0.1:{free_port()}", f"grpc://127.0.0.1:{port}"], ConnectionSettings())
    await source.tell(pools("first"))
    async with asyncio.timeout(GUARD_SECONDS), aclosing(source.snapshots()) as snapshots:
        async with server(tmp_path / "one", port) as (seen, _address):
            await anext(snapshots)
            await seen.knows("first")
        waiting = asyncio.ensure_future(anext(snapshots))
        while not source.trouble:
            await asyncio.wait([waiting], timeout=0.01)
        await source.tell(pools("second"))
        async with server(tmp_path / "two", port) as (seen, _address):
            await waiting
            await seen.knows("second")


def test_credentials_that_are_not_there_are_named_at_once() -> None:
    with pytest.raises(CannotConnect, match="no-such-token"):
        RemoteSource(["grpc://127.0.0.1:1"], ConnectionSettings(token_file="no-such-token"))
    with pytest.raises(CannotConnect, match="no-such-ca"):
        RemoteSource(["grpcs://127.0.0.1:1"], ConnectionSettings(tls_ca="no-such-ca"))


async def test_an_autoscaler_says_over_http_whether_it_hears_the_scheduler(tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    file = tmp_path / "rexec.toml"
    file.write_text(
        f'state_dir = "{tmp_path / "own"}"\n[server]\nmetrics_listen = "127.0.0.1:{metrics}"\n'
        '[worker]\nannounce = []\n[[autoscale.pools]]\nname = "mine"\nkind = "local"\nmax = 2\n'
    )
    config = parse(file.read_text())
    async with asyncio.timeout(GUARD_SECONDS), running_autoscaler((f"grpc://127.0.0.1:{port}",), config, file):
        status, text = await fetch(f"http://127.0.0.1:{metrics}/readyz")
        assert status == 503
        assert "not reached" in text
        async with server(tmp_path / "state", port) as (seen, _address):
            while (await fetch(f"http://127.0.0.1:{metrics}/readyz"))[0] != 200:
                pass
            await seen.knows("mine")
            text = (await fetch(f"http://127.0.0.1:{metrics}/metrics"))[1]
            assert 'rexec_autoscale_max{pool="mine"} 2.0' in text


async def test_pods_without_a_place_for_their_workers_to_connect_to_are_refused(tmp_path: Path) -> None:
    config = parse(
        f'state_dir = "{tmp_path}"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\n'
        '[[autoscale.pools]]\nname = "pods"\nimage = "x"\n'
    )

    @asynccontextmanager
    async def beside(core: Core, answering: Running) -> AsyncIterator[None]:
        assert answering.socket is not None
        async with core.pools(config, None, answering.socket):
            yield

    with pytest.raises(CannotServe, match=r"\[autoscale\] server is empty"):
        async with asyncio.timeout(GUARD_SECONDS), running(config, beside):
            raise AssertionError("it serves")
    with pytest.raises(CannotScale, match=r"\[autoscale\] server is empty"):
        async with running_autoscaler(("grpc://127.0.0.1:1",), config, tmp_path / "rexec.toml"):
            raise AssertionError("it runs")


def test_the_documentation_lists_the_metrics_of_an_autoscaler_and_nothing_else() -> None:
    registry = CollectorRegistry()
    telemetry = AutoscaleTelemetry(registry)
    telemetry.pools([autoscaling_pb2.Pool(name="a-1", ready=1, problem="no"), autoscaling_pb2.Pool(name="b", target=2)])
    telemetry.asked("a")
    telemetry.came("a", 3.0)
    telemetry.failed("a")
    telemetry.removed("a", "left")
    telemetry.decided(0.01)
    telemetry.heard(True)
    telemetry.pools([autoscaling_pb2.Pool(name="b", target=3)])
    families = {family.name: family for family in registry.collect()}
    table = documented("Autoscaler")
    assert {name.removesuffix("_total"): shown.kind for name, shown in table.items()} == {
        name: family.type for name, family in families.items()
    }
    for name, shown in table.items():
        for sample in families[name.removesuffix("_total")].samples:
            assert set(sample.labels) - {"le"} == shown.labels, name
    assert registry.get_sample_value("rexec_autoscale_target", {"pool": "b"}) == 3
    assert registry.get_sample_value("rexec_autoscale_target", {"pool": "a-1"}) is None, "its image is gone"
