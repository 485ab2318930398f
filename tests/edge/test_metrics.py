"""What a real server and a real worker show, and whether the documentation and the dashboard speak of the same."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from grpc import aio
from prometheus_client.parser import text_string_to_metric_families

from cas.digest import Digest
from cas.remote import RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.config import parse
from rexec.scheduler.category import Category
from rexec.scheduler.observer import PoolLoad, Snapshot
from rexec.scheduler.stages import STAGES
from rexec.server import running
from rexec.telemetry import state_metrics
from tests.edge.test_http_port import get
from tests.edge.test_server import free_port

GUARD_SECONDS = 60

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "rexec.json").read_text())

LARGE = b"x" * 100_000
"""An input; blobs moved are at least as many bytes."""


@dataclass(frozen=True)
class Shown:
    """A metric as a scrape has it, or the documentation."""

    kind: str
    labels: frozenset[str]


class Scrape:
    """What one process shows."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.kinds = {_name(name, family.type): family.type for name, family in self.families.items()}
        self.labels: dict[str, set[str]] = {}
        for name, family in self.families.items():
            for sample in family.samples:
                self.labels.setdefault(_name(name, family.type), set()).update(set(sample.labels) - {"le"})

    def value(self, sample_name: str, **labels: str) -> float:
        """Of the only sample of that name that has these labels."""
        (value,) = (
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == sample_name and labels.items() <= sample.labels.items()
        )
        return float(value)


def _name(family: str, kind: str) -> str:
    return f"{family}_total" if kind == "counter" else family


@asynccontextmanager
async def worker(server: str, work_dir: Path, port: int) -> AsyncIterator[asyncio.subprocess.Process]:
    arguments = "--server", server, "--slots", "1", "--work-dir", str(work_dir), "--metrics-listen", f"127.0.0.1:{port}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rexec", "worker", *arguments, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.communicate()


async def execute(channel: aio.Channel) -> re_pb2.ExecuteResponse:
    """Copy a large input to an output, and how that ended."""
    store = RemoteStore(channel)
    command = re_pb2.Command(arguments=["/bin/cp", "in", "out"], output_paths=["out"])
    root = re_pb2.Directory(files=[re_pb2.FileNode(name="in", digest=Digest.of(LARGE).to_proto())])
    encoded = [command.SerializeToString(), root.SerializeToString()]
    digests = [Digest.of(data) for data in encoded]
    action = re_pb2.Action(command_digest=digests[0].to_proto(), input_root_digest=digests[1].to_proto())
    blobs = [*encoded, LARGE, action.SerializeToString()]
    assert await store.write_many([(Digest.of(data), data) for data in blobs]) == {}
    call: Any = channel.unary_stream("/build.bazel.remote.execution.v2.Execution/Execute")
    request = re_pb2.ExecuteRequest(action_digest=Digest.of(blobs[-1]).to_proto())
    response = re_pb2.ExecuteResponse()
    async for data in call(request.SerializeToString()):
        operation = operations_pb2.Operation.FromString(data)
        if operation.done:
            assert operation.response.Unpack(response)
    return response


@dataclass(frozen=True)
class Scrapes:
    server: Scrape
    worker: Scrape

    def shown(self, name: str) -> bool:
        return name in self.server.kinds or name in self.worker.kinds


@pytest.fixture(scope="module")
def scrapes(tmp_path_factory: pytest.TempPathFactory) -> Scrapes:
    """After one action that was run and one that was a hit."""

    async def ran() -> Scrapes:
        folder = tmp_path_factory.mktemp("metrics")
        ports = free_port(), free_port()
        text = f'listen = ["127.0.0.1:0"]\nmetrics_listen = "127.0.0.1:{ports[0]}"'
        async with (
            asyncio.timeout(GUARD_SECONDS),
            running(parse(f'state_dir = "{folder / "state"}"\nslots = 0\n[server]\n{text}')) as server,
            worker(f"grpc://{server.addresses[0]}", folder / "work", ports[1]),
            aio.insecure_channel(server.addresses[0]) as channel,
        ):
            for cached in (False, True):
                response = await execute(channel)
                assert (response.result.exit_code, response.cached_result) == (0, cached)
            assert await get(ports[1], "/readyz") == (200, "ready\n")
            first, second = [Scrape((await get(port, "/metrics"))[1]) for port in ports]
            return Scrapes(first, second)

    return asyncio.run(ran())


def test_every_stage_of_a_run_is_timed(scrapes: Scrapes) -> None:
    for stage in STAGES:
        assert scrapes.server.value("rexec_stage_seconds_count", stage=stage) == 1
    for phase in ("fetching", "laying_out", "running", "collecting", "uploading"):
        assert scrapes.worker.value("rexec_worker_phase_seconds_count", phase=phase) == 1


def test_hits_misses_slots_and_leases_are_counted(scrapes: Scrapes) -> None:
    lookups = "rexec_action_cache_lookups_total"
    assert (scrapes.server.value(lookups, outcome="hit"), scrapes.server.value(lookups, outcome="miss")) == (1, 1)
    assert scrapes.server.value("rexec_workers", state="ready") == 1
    assert (scrapes.server.value("rexec_slots"), scrapes.worker.value("rexec_worker_slots")) == (1, 1)
    assert scrapes.worker.value("rexec_worker_leases_ended_total", failure="none") == 1
    assert scrapes.worker.value("rexec_worker_attached") == 1


def test_bytes_are_counted_by_direction(scrapes: Scrapes) -> None:
    # Written twice by the client; the output is the input, which the store has, so the worker uploads nothing.
    assert scrapes.server.value("rexec_cas_bytes_total", direction="written") > 2 * len(LARGE)
    assert 2 * len(LARGE) > scrapes.server.value("rexec_cas_bytes_total", direction="read") > len(LARGE)
    assert 2 * len(LARGE) > scrapes.worker.value("rexec_worker_blob_bytes_total", direction="fetched") >= len(LARGE)
    assert scrapes.worker.value("rexec_worker_blob_bytes_total", direction="uploaded") == 0
    assert scrapes.worker.value("rexec_worker_cache_bytes") >= len(LARGE)


def documented(heading: str) -> dict[str, Shown]:
    """The table below a heading of deploy/metrics.md."""
    text = (DEPLOY / "metrics.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    return {name: Shown(kind, frozenset(labels.replace(",", " ").split())) for name, kind, labels in rows}


@pytest.mark.parametrize("process", ["Server", "Worker"])
def test_the_documentation_lists_what_is_shown_and_nothing_else(scrapes: Scrapes, process: str) -> None:
    table = documented(process)
    scrape = scrapes.server if process == "Server" else scrapes.worker
    assert {name: shown.kind for name, shown in table.items()} == scrape.kinds
    for name, labels in scrape.labels.items():
        assert table[name].labels == labels, name


def test_every_kind_of_reason_is_shown_and_explained(scrapes: Scrapes) -> None:
    table = (DEPLOY / "metrics.md").read_text().split("\n| reason |")[1].split("\n\n")[0]
    explained = re.findall(r"^\| (\w+) \|.*\|.*\|$", table, re.MULTILINE)
    assert explained == [category.value for category in Category]
    for category in Category:
        assert scrapes.server.value("rexec_waiting_reasons", reason=category.value) == 0


def test_what_a_tenant_has_had_is_counted(scrapes: Scrapes) -> None:
    tenant = {sample.labels["tenant"] for sample in scrapes.server.families["rexec_tenant_operations"].samples}
    assert len(tenant) == 1
    for ending, count in (("succeeded", 1), ("cached", 1), ("failed", 0), ("cancelled", 0)):
        assert scrapes.server.value("rexec_tenant_operations_ended_total", ending=ending) == count
    assert scrapes.server.value("rexec_tenant_slot_seconds_total") > 0
    assert scrapes.server.value("rexec_tenant_operations", stage="queued") == 0


def test_the_workers_of_pools_are_counted_by_state() -> None:
    pools = {"linux": PoolLoad(ready=3, starting=2, leaving=1, target=5, cost_today=1.5)}
    state = Snapshot(platforms={}, executing=0, operations=0, workers={}, slots=0, busy_slots=0, pools=pools)
    shown = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in state_metrics(state, 0)
        if metric.name.startswith("rexec_pool_")
        for sample in metric.samples
    }
    assert shown == {
        ("rexec_pool_workers", "linux", "ready"): 3,
        ("rexec_pool_workers", "linux", "starting"): 2,
        ("rexec_pool_workers", "linux", "leaving"): 1,
        ("rexec_pool_target_workers", "linux"): 5,
        ("rexec_pool_cost_today", "linux"): 1.5,
    }


def queries() -> Iterator[tuple[str, str, str]]:
    """Panel, expression and legend of every query of the dashboard."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"], target["legendFormat"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]["query"], ""


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression reads; `_bucket` and the like belong to their histogram."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in re.findall(r"\brexec_\w+", expression)}


@pytest.mark.parametrize("query", list(queries()), ids=lambda query: query[0])
def test_the_dashboard_asks_for_what_is_there(scrapes: Scrapes, query: tuple[str, str, str]) -> None:
    _, expression, legend = query
    names = metrics_in(expression)
    assert names
    assert all(scrapes.shown(name) for name in names), names
    everything = documented("Server") | documented("Worker")
    given = frozenset({"le", "job", "instance"}).union(*(everything[name].labels for name in names))
    grouped = {label for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(", ")}
    matched = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|=|!=)\"", expression)) - {"__name__"}
    assert grouped | matched | set(re.findall(r"{{(\w+)}}", legend)) <= given
    histogram = any(everything[name].kind == "histogram" for name in names)
    assert histogram == bool(re.search(r"rexec_\w+_(bucket|sum|count)\b", expression))
    counted = any(everything[name].kind in ("counter", "histogram") for name in names)
    assert counted == ("rate(" in expression), "counters only go up: their rate is what is worth seeing"


def test_the_dashboard_leaves_no_metric_out(scrapes: Scrapes) -> None:
    asked = set().union(*(metrics_in(expression) for _, expression, _ in queries()))
    assert asked == {*scrapes.server.kinds, *scrapes.worker.kinds}


def test_the_dashboard_has_its_rows_and_panels_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert [panel["title"] for panel in panels if panel["type"] == "row"] == [
        "Queue", "Workers", "Latencies", "Cache", "RPCs", "Tenants", "Scheduler"
    ]  # fmt: skip
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


async def test_a_server_that_drains_is_alive_and_not_ready(tmp_path: Path) -> None:
    port = free_port()
    text = f'listen = ["127.0.0.1:0"]\nmetrics_listen = "127.0.0.1:{port}"'
    async with running(parse(f'state_dir = "{tmp_path}"\nslots = 0\n[server]\n{text}')) as server:
        assert await get(port, "/readyz") == (200, "ready\n")
        server.health.drain()
        assert await get(port, "/readyz") == (503, "the server is draining\n")
        assert (await get(port, "/healthz"))[0] == 200


async def test_a_worker_whose_server_is_away_is_alive_and_not_ready(tmp_path: Path) -> None:
    port = free_port()
    async with asyncio.timeout(GUARD_SECONDS), worker(f"grpc://127.0.0.1:{free_port()}", tmp_path, port) as process:
        assert process.stderr is not None
        async for line in process.stderr:
            if b"cannot reach the server" in line:
                break
        assert await get(port, "/readyz") == (503, "the scheduler is not reached\n")
        assert (await get(port, "/healthz"))[0] == 200
