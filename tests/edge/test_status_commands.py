"""`rexec ps`, `rexec workers` and `rexec top` as processes of their own, against a real server."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.grpc.health.v1 import health_pb2
from protos.methods import methods_of
from protos.rexec.scheduler.v1 import autoscaling_pb2, status_pb2
from rexec.cli import main
from rexec.health import Health
from rexec.no_workers import MAX_POOLS, named_pools
from rexec.rpc import RpcServer
from rexec.top_view import view
from tests.edge.test_rights import REAPI, queued, serving, token
from tests.edge.test_server import free_port
from tests.edge.test_status_text import HOSTILE

GUARD_SECONDS = 60


@dataclass(frozen=True)
class Told:
    """What a command wrote, and how it ended."""

    status: int
    output: str
    errors: str


async def told(*arguments: str) -> Told:
    environment = {name: value for name, value in os.environ.items() if name != "REXEC_SERVER"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rexec", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    async with asyncio.timeout(GUARD_SECONDS):
        output, errors = await process.communicate()
    assert process.returncode is not None
    return Told(process.returncode, output.decode(), errors.decode())


@dataclass(frozen=True)
class Served:
    address: str
    operation: str
    """One that waits, in instance "main"."""
    folder: Path

    def who(self, name: str) -> tuple[str, ...]:
        """The options that say where and who."""
        file = self.folder / f"{name}.token"
        file.write_text(token(name))
        return "--server", self.address, "--token-file", str(file)


@asynccontextmanager
async def one_that_waits(folder: Path) -> AsyncIterator[Served]:
    async with serving(folder) as (server, channel):
        _, name = await queued(channel, "main", token("builder"))
        wait: Any = channel.unary_stream(f"{REAPI}.Execution/WaitExecution")
        headers = (("authorization", f"Bearer {token('builder')}"),)
        waiting = wait(re_pb2.WaitExecutionRequest(name=name).SerializeToString(), metadata=headers)
        await waiting.read()
        yield Served(f"grpc://{server.addresses[0]}", name, folder)
        waiting.cancel()


async def test_ps_shows_what_waits_and_why(tmp_path: Path) -> None:
    async with one_that_waits(tmp_path) as served:
        shown = await told("ps", *served.who("builder"))
        assert (shown.status, shown.errors) == (0, "")
        title, line = shown.output.splitlines()
        assert title.split()[:3] == ["OPERATION", "STAGE", "AGE"]
        assert line.startswith(served.operation)
        assert line.endswith("no worker is attached")
        said = json.loads((await told("ps", "--json", *served.who("builder"))).output)
        assert (said["name"], said["stage"], said["category"]) == (served.operation, "queued", "no_worker")
        names = await told("ps", "--quiet", "--stage", "queued", "--instance", "main", *served.who("builder"))
        assert names.output == f"{served.operation}\n"
        for chosen in (["--stage", "executing"], ["--user", "nobody"], ["--invocation", "x"], ["--instance", ""]):
            none = await told("ps", *chosen, *served.who("builder"))
            assert (none.status, none.output) == (0, "")
            assert none.errors.startswith("rexec: no ")


async def test_who_may_not_know_is_told_what_it_takes(tmp_path: Path) -> None:
    async with one_that_waits(tmp_path) as served:
        for command in ("ps", "top", "workers"):
            refused = await told(command, *served.who("reader"))
            assert (refused.status, refused.output) == (1, "")
            assert "the right to execute" in refused.errors
        hidden = await told("ps", *served.who("elsewhere"))
        assert (hidden.status, hidden.output) == (0, "")
        unnamed = await told("ps", "--server", served.address)
        assert unnamed.status == 1
        assert "--token-file" in unnamed.errors
        assert "Traceback" not in unnamed.errors


async def test_drain_takes_the_right_to_operate(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, _):
        served = Served(f"grpc://{server.addresses[0]}", "", tmp_path)
        refused = await told("drain", "--all", *served.who("builder"))
        assert (refused.status, refused.output) == (1, "")
        assert "the right to operate" in refused.errors
        nobody = await told("drain", "--all", *served.who("operator"))
        assert (nobody.status, nobody.output, nobody.errors) == (0, "", "rexec: no such worker\n")
        unknown = await told("drain", "w\x1b1", *served.who("operator"))
        assert (unknown.status, unknown.output) == (1, "")
        assert "no worker that you may drain is named w\\x1b1" in unknown.errors


async def test_top_without_a_terminal_is_shown_once_and_says_so(tmp_path: Path) -> None:
    async with one_that_waits(tmp_path) as served:
        shown = await told("top", *served.who("builder"))
        assert shown.status == 0
        assert "not on a terminal" in shown.errors
        assert "1 waiting, 0 running" in shown.output
        assert "no worker is attached" in shown.output
        assert "no price is configured" in shown.output
        assert "\x1b" not in shown.output
        once = await told("top", "--once", *served.who("builder"))
        assert (once.status, once.errors) == (0, "")
        said = json.loads((await told("top", "--json", *served.who("builder"))).output)
        assert (said["work"]["waiting_tasks"], said["price"]) == (1, None)
        none = await told("workers", *served.who("builder"))
        assert (none.status, none.output) == (0, "")
        assert "no worker is attached" in none.errors


async def test_without_workers_the_pools_that_could_have_some_are_named(tmp_path: Path) -> None:
    async with serving(tmp_path) as (server, channel):
        who = Served(f"grpc://{server.addresses[0]}", "", tmp_path).who("everything")
        # Of other instances, because an answer is kept for a moment.
        assert "start one with  rexec worker" in (await told("workers", "--instance", "main", *who)).errors
        method = methods_of(autoscaling_pb2, "Autoscaling")["Follow"]
        follow: Any = channel.stream_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        stream = follow(metadata=(("authorization", f"Bearer {token('everything')}"),))
        pools = [
            autoscaling_pb2.Pool(name="linux", slots=1, max=8),
            autoscaling_pb2.Pool(name="gpu", slots=1, max=2, target=1, starting=1),
        ]
        await stream.write(autoscaling_pb2.FromAutoscaler(pools=autoscaling_pb2.Pools(pools=pools)))
        await stream.read()
        said = "pools: gpu (0 of at most 2, 1 on the way), linux (0 of at most 8)"
        shown = await told("workers", *who)
        assert (shown.status, shown.output) == (0, "")
        assert shown.errors == f"rexec: no worker is attached; {said}\n"
        assert f"workers   none; {said}" in (await told("top", "--once", *who)).output
        stream.cancel()


def test_of_many_pools_only_some_are_named() -> None:
    overview = status_pb2.Overview(pools_left_out=3)
    for number in range(MAX_POOLS + 2):
        overview.pools.add(name=f"pool-{number}", max=1, autoscaler_away=number == 0)
    assert named_pools(overview).startswith("pools: pool-0 (0 of at most 1, its autoscaler is away), pool-1 ")
    assert named_pools(overview).endswith("pool-7 (0 of at most 1), and 5 more")


async def test_top_on_a_terminal_is_drawn_until_a_key_ends_it(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    before = termios.tcgetattr(theirs)
    written = bytearray()
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def read() -> None:
        written.extend(os.read(ours, 1 << 16))
        changed.set()

    async def until(text: bytes) -> None:
        async with asyncio.timeout(GUARD_SECONDS):
            while text not in written:
                changed.clear()
                await changed.wait()

    async with one_that_waits(tmp_path) as served:
        arguments = "top", "--interval", "0.2", *served.who("builder")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "rexec", *arguments, stdin=theirs, stdout=theirs, stderr=theirs,
            env={**os.environ, "TERM": "xterm"},
        )  # fmt: skip
        loop.add_reader(ours, read)
        try:
            await until(b"1 waiting, 0 running")
            written.clear()
            await until(b"1 waiting, 0 running")  # drawn again
            os.write(ours, b"x")  # means nothing
            written.clear()
            await until(b"1 waiting, 0 running")
            os.write(ours, b"q")
            async with asyncio.timeout(GUARD_SECONDS):
                assert await process.wait() == 0
            await until(b"\x1b[?1049l")  # what was on the screen before is back
            assert termios.tcgetattr(theirs) == before
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            loop.remove_reader(ours)
            os.close(ours)
            os.close(theirs)


@pytest.mark.parametrize("command", ["ps", "top", "workers"])
async def test_a_server_that_is_not_there_is_named(command: str) -> None:
    address = f"grpc://127.0.0.1:{free_port()}"
    failed = await told(command, "--server", address)
    assert (failed.status, failed.output) == (1, "")
    assert f"{address} is not reached" in failed.errors
    assert "--server" in failed.errors
    assert "Traceback" not in failed.errors


async def test_a_server_that_does_not_know_the_question_is_too_old() -> None:
    server = RpcServer()
    server.add(health_pb2, "Health", Health([]))
    port = server.listen("127.0.0.1:0")
    await server.start()
    try:
        failed = await told("ps", "--server", f"grpc://127.0.0.1:{port}")
    finally:
        await server.stop(0)
    assert failed.status == 1
    assert "older than this program, or not rexec" in failed.errors


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ps", "--server", "ftp://x:1"], "expected grpc://HOST:PORT"),
        (["ps", "--stage", "waiting"], "'waiting' is not one of"),
        (["ps", "--limit", "0"], "--limit"),
        (["top", "--interval", "0"], "--interval"),
        (["workers", "--tls-key", "k"], "expected both tls-certificate and tls-key"),
        (["ps", "--token-file", "/does/not/exist"], "/does/not/exist"),
        (["drain"], "name workers, or say --all"),
        (["drain", "w1", "--all"], "one of the three"),
        (["drain", "--property", "gcc"], "expected NAME=VALUE"),
        (["drain", "w1", "--grace", "-1"], "--grace"),
    ],
)
def test_a_wrong_option_is_explained(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code in (1, 2)
    assert complaint in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        (
            "ps",
            ["--server", "$REXEC_SERVER", "--stage", "--invocation", "--json", "--wide", "Exit status", "why it waits"],
        ),
        ("top", ["--once", "--interval", "2.0", "q or Ctrl-C", "Exit status"]),
        ("workers", ["--json", "--wide", "Exit status", "--token-file"]),
        (
            "drain",
            ["[WORKER]...", "--all", "--property NAME=VALUE", "--grace", "3600", "Exit status", 'the right "operate"'],
        ),
    ],
)
def test_the_help_says_what_is_needed(command: str, mentions: list[str]) -> None:
    shown = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    assert [text for text in mentions if text not in shown] == []
    assert command in " ".join(CliRunner().invoke(main, ["--help"]).output.split())


def drawn(overview: status_pb2.Overview, most: int = 10) -> str:
    console = Console(width=120, height=40, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(view(overview, "grpc://server:1", "", most))
    return capture.get()


@pytest.mark.parametrize("text", [*HOSTILE, "[bold red]markup[/]", "[/]"])
def test_top_shows_hostile_names_as_they_are_spelled(text: str) -> None:
    overview = status_pb2.Overview(software_version=text)
    platform = overview.platforms.add(instance_name=text, tasks=1, reason=text)
    platform.properties.add(name=text, value=text)
    overview.invocations.add(instance_name=text).owner.user = text
    overview.invocations.add().owner.invocation = text
    overview.work.reasons.add(category=text, tasks=1)
    overview.pools.add(name=text, problem=text)
    overview.price.currency = text
    shown = drawn(overview)
    assert all(line.isprintable() for line in shown.split("\n"))
    assert shown.count("\n") == drawn(hostless(overview)).count("\n")
    if text.startswith("[bold"):
        assert text in shown


def hostless(overview: status_pb2.Overview) -> status_pb2.Overview:
    """The same with harmless names."""
    plain = status_pb2.Overview()
    plain.platforms.add(tasks=1)
    for _ in overview.invocations:
        plain.invocations.add()
    plain.pools.add()
    plain.price.SetInParent()
    return plain


def test_top_shows_pools_with_those_at_work_first() -> None:
    overview = status_pb2.Overview(pools_left_out=2)
    assert "POOL" not in drawn(overview)
    overview.pools.add(name="asleep", max=5)
    overview.pools.add(name="gpu", max=4, target=3, ready=1, starting=2, slots=8, problem="0/3 nodes are available")
    overview.pools.add(name="gone", target=1, autoscaler_away=True, problem="old")
    for number in range(8):
        overview.pools.add(name=f"more-{number}")
    lines = drawn(overview).splitlines()
    title = next(place for place, line in enumerate(lines) if line.startswith("POOL"))
    assert "TODAY" not in lines[title]
    gpu, gone, asleep = lines[title + 1 : title + 4]
    assert gpu.split() == ["gpu", "1", "3", "4", "2", "0", "8", "0/3", "nodes", "are", "available"]
    assert gone.rstrip().endswith("the autoscaler is away")
    assert asleep.split() == ["asleep", "0", "0", "5", "0", "0", "0"]
    assert "and 5 more pools" in lines[title + 9]
    overview.pools[0].cost_today = 12.5
    overview.price.currency = "EUR"
    assert "12.50 EUR" in drawn(overview)


def test_top_says_what_a_build_costs_and_when_it_is_done() -> None:
    overview = status_pb2.Overview()
    overview.price.currency = "EUR"
    building = overview.invocations.add(eta_seconds=75, first_seen_seconds=30)
    building.use.queued, building.use.executing, building.use.slots = 5, 2, 2
    building.use.slot_seconds, building.use.cost = 7200, 0.5
    building.owner.user = "alice"
    stuck = overview.invocations.add(first_seen_seconds=30)
    stuck.use.queued = 1
    done = overview.invocations.add(idle_seconds=9)
    done.use.cached = 12
    overview.tenants.add().use.CopyFrom(building.use)
    lines = drawn(overview).splitlines()
    assert any("0.5000 EUR for 2.00 slot-hours" in line for line in lines)
    (mine,) = (line for line in lines if line.startswith("alice"))
    assert "0.5000 EUR" in mine
    assert "1m15s" in mine
    assert "2h00m" in mine
    assert any(" ? " in line for line in lines), "an ETA that nobody knows"
    assert any("idle 9.0s" in line and " 12 " in line for line in lines)
    assert "and 2 more" in drawn(overview, 1)
