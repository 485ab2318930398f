"""The server's metrics in Prometheus' terms. deploy/metrics.md lists them.

The parts of rexec know only small observer protocols; this is where their calls become counters. State (queue, workers)
is not counted but asked for when Prometheus scrapes, so that it can never drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from cas.errors import Code
from rexec.scheduler.category import Category
from rexec.scheduler.observer import Snapshot
from rexec.scheduler.stages import STAGES

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that only says when the process started

LATENCY_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Buckets of every histogram of durations: from a lookup to a long test."""

BATCH_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000, 20_000)
"""Buckets of the rows of a transaction."""

_CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"
_READING = frozenset({"/google.bytestream.ByteStream/Read", _CAS + "BatchReadBlobs", _CAS + "GetTree"})
_WRITING = frozenset({"/google.bytestream.ByteStream/Write", _CAS + "BatchUpdateBlobs"})


class Telemetry:
    """Counts what happens: an observer of RPCs (rexec/rpc.py) and of the scheduler (rexec/scheduler/observer.py)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rpcs = Counter(
            "rexec_rpcs", "Calls ended, by method and gRPC status.", ("method", "code"), registry=self.registry
        )
        self._rpc_seconds = Histogram(
            "rexec_rpc_seconds", "Duration of calls.", ("method",), registry=self.registry, buckets=LATENCY_SECONDS
        )
        self._executions = Counter(
            "rexec_executions", "Actions that workers ran, by how they ended.", ("result",), registry=self.registry
        )
        self._execution_seconds = Histogram(
            "rexec_execution_seconds",
            "From queueing an action to its completion.",
            registry=self.registry,
            buckets=LATENCY_SECONDS,
        )
        stage_seconds = Histogram(
            "rexec_stage_seconds",
            "Duration of each stage of the actions that workers ran.",
            ("stage",),
            registry=self.registry,
            buckets=LATENCY_SECONDS,
        )
        self._stages = {stage: stage_seconds.labels(stage) for stage in STAGES}
        self._retries = Counter(
            "rexec_retries",
            "Leases that came to nothing; counted: whether that used up an attempt.",
            ("counted",),
            registry=self.registry,
        )
        self._lookups = Counter(
            "rexec_action_cache_lookups",
            "Looks into the action cache, by clients (GetActionResult) and by Execute.",
            ("outcome",),
            registry=self.registry,
        )
        blob_bytes = Counter(
            "rexec_cas_bytes",
            "Bytes of messages that carry blobs: read by clients and workers, or written by them.",
            ("direction",),
            registry=self.registry,
        )
        self._read_bytes = blob_bytes.labels("read")
        self._written_bytes = blob_bytes.labels("written")
        self._hedges = Counter(
            "rexec_hedges",
            "Second leases of tasks that took long, by what became of them.",
            ("event",),
            registry=self.registry,
        )
        self._quarantines = Counter(
            "rexec_quarantines", "Workers that were given no leases for a while.", registry=self.registry
        )
        self._commit_seconds = Histogram(
            "rexec_journal_commit_seconds",
            "From the first change of a transaction to its commit.",
            registry=self.registry,
            buckets=LATENCY_SECONDS,
        )
        self._commit_rows = Histogram(
            "rexec_journal_commit_rows", "Rows of a transaction.", registry=self.registry, buckets=BATCH_ROWS
        )
        self._frontends = Gauge("rexec_frontends", "Frontends that are connected.", registry=self.registry)
        self._snapshot: Callable[[], Snapshot] | None = None
        self._stored_bytes: Callable[[], int] = int
        # A child is looked up by its label values in 2 us, and a call is served in 300: kept, because it costs nothing.
        self._rpc_children: dict[tuple[str, Code], Counter] = {}

    def rpc_ended(self, method: str, code: Code, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """See RpcObserver."""
        child = self._rpc_children.get((method, code))
        if child is None:
            child = self._rpc_children[method, code] = self._rpcs.labels(method.lstrip("/"), code.name)
        child.inc()
        self._rpc_seconds.labels(method.lstrip("/")).observe(seconds)
        if method in _READING:
            self._read_bytes.inc(sent_bytes)
        elif method in _WRITING:
            self._written_bytes.inc(received_bytes)
        if method.endswith("/GetActionResult") and code in (Code.OK, Code.NOT_FOUND):
            self._lookups.labels("hit" if code is Code.OK else "miss").inc()

    def execution_finished(self, result: str, seconds: float) -> None:
        """See Observer."""
        self._executions.labels(result).inc()
        self._execution_seconds.observe(seconds)

    def lease_granted(self, queued_seconds: float) -> None:
        """See Observer."""
        self._stages["queued"].observe(queued_seconds)

    def stage_ended(self, stage: str, seconds: float) -> None:
        """See Observer."""
        self._stages[stage].observe(seconds)

    def task_retried(self, counted: bool) -> None:
        """See Observer."""
        self._retries.labels("yes" if counted else "no").inc()

    def action_cache_read(self, outcome: str) -> None:
        """See Observer."""
        self._lookups.labels(outcome).inc()

    def hedge_started(self) -> None:
        """See Observer."""
        self._hedges.labels("started").inc()

    def hedge_ended(self, won: bool) -> None:
        """See Observer."""
        self._hedges.labels("won" if won else "lost").inc()

    def worker_quarantined(self) -> None:
        """See Observer."""
        self._quarantines.inc()

    def journal_committed(self, seconds: float, rows: int) -> None:
        """See Observer."""
        self._commit_seconds.observe(seconds)
        if rows:  # else it only says that this process still leads
            self._commit_rows.observe(rows)

    def frontend_links(self, links: int) -> None:
        """See Observer."""
        self._frontends.set(links)

    def watch(self, snapshot: Callable[[], Snapshot], stored_bytes: Callable[[], int]) -> None:
        """Show the scheduler's state and the store's fill from now on."""
        self._snapshot = snapshot
        self._stored_bytes = stored_bytes

    def state(self) -> Sequence[Metric]:
        """What is true now; nothing before `watch`. To be asked on the event loop, which owns all of it."""
        return () if self._snapshot is None else state_metrics(self._snapshot(), self._stored_bytes())


def state_metrics(state: Snapshot, stored_bytes: int) -> Sequence[Metric]:
    """The gauges of one moment, and the counters that the scheduler keeps itself."""
    workers = GaugeMetricFamily("rexec_workers", "Workers by state.", labels=("state",))
    for name, count in state.workers.items():
        workers.add_metric((name,), count)
    reasons = GaugeMetricFamily("rexec_waiting_reasons", "Queued tasks by why they have no worker.", labels=("reason",))
    for category in Category:
        reasons.add_metric((category.value,), state.reasons.get(category.value, 0))
    return (
        *_platform_metrics(state),
        *_tenant_metrics(state),
        *_pool_metrics(state),
        workers,
        reasons,
        GaugeMetricFamily("rexec_executing_tasks", "Tasks that have a worker.", value=state.executing),
        GaugeMetricFamily("rexec_parked_tasks", "Tasks that nobody waits for.", value=state.parked),
        GaugeMetricFamily("rexec_operations", "Operations that can be asked for.", value=state.operations),
        GaugeMetricFamily("rexec_slots", "Slots of all ready workers.", value=state.slots),
        GaugeMetricFamily("rexec_busy_slots", "Slots that have a lease.", value=state.busy_slots),
        GaugeMetricFamily("rexec_stored_bytes", "Bytes in the blob store.", value=stored_bytes),
    )


def _platform_metrics(state: Snapshot) -> Iterator[Metric]:
    waiting = GaugeMetricFamily("rexec_waiting_tasks", "Tasks in line.", labels=("platform",))
    oldest = GaugeMetricFamily(
        "rexec_oldest_waiting_seconds", "Since the task that waits longest was queued.", labels=("platform",)
    )
    expected = GaugeMetricFamily(
        "rexec_waiting_slot_seconds", "What the tasks in line are expected to take.", labels=("platform",)
    )
    for platform, load in state.platforms.items():
        waiting.add_metric((platform,), load.waiting)
        oldest.add_metric((platform,), load.oldest_seconds)
        expected.add_metric((platform,), load.expected_slot_seconds)
    yield from (waiting, oldest, expected)


def _pool_metrics(state: Snapshot) -> Iterator[Metric]:
    workers = GaugeMetricFamily("rexec_pool_workers", "Workers of pools by state.", labels=("pool", "state"))
    target = GaugeMetricFamily("rexec_pool_target_workers", "Workers that a pool should have.", labels=("pool",))
    cost = GaugeMetricFamily("rexec_pool_cost_today", "What a pool has cost since midnight UTC.", labels=("pool",))
    for pool, load in state.pools.items():
        workers.add_metric((pool, "ready"), load.ready)
        workers.add_metric((pool, "starting"), load.starting)
        workers.add_metric((pool, "leaving"), load.leaving)
        target.add_metric((pool,), load.target)
        cost.add_metric((pool,), load.cost_today)
    yield from (workers, target, cost)


def _tenant_metrics(state: Snapshot) -> Iterator[Metric]:
    operations = GaugeMetricFamily(
        "rexec_tenant_operations", "Operations that have not ended.", labels=("tenant", "stage")
    )
    ended = CounterMetricFamily(
        "rexec_tenant_operations_ended", "Operations, by how they ended.", labels=("tenant", "ending")
    )
    used = CounterMetricFamily("rexec_tenant_slot_seconds", "Slots held by leases, times seconds.", labels=("tenant",))
    cost = CounterMetricFamily("rexec_tenant_cost", "What these cost, in the configured currency.", labels=("tenant",))
    for tenant, load in state.tenants.items():
        operations.add_metric((tenant, "queued"), load.queued)
        operations.add_metric((tenant, "executing"), load.executing)
        for ending, count in load.ended.items():
            ended.add_metric((tenant, ending), count)
        used.add_metric((tenant,), load.slot_seconds)
        if state.has_prices:
            cost.add_metric((tenant,), load.cost)
    yield from (operations, ended, used, cost)
