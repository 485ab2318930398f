"""The server's metrics in Prometheus' terms. deploy/metrics.md lists them.

The parts of rexec know only small observer protocols; this is where their calls become counters. State (queue, workers)
is not counted but asked for when Prometheus scrapes, so that it can never drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric

from cas.errors import Code
from rexec.scheduler.observer import Snapshot
from rexec.scheduler.stages import STAGES

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that only says when the process started

LATENCY_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
"""Buckets of every histogram of durations: from a lookup to a long test."""

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

    def watch(self, snapshot: Callable[[], Snapshot], stored_bytes: Callable[[], int]) -> None:
        """Show the scheduler's state and the store's fill from now on."""
        self._snapshot = snapshot
        self._stored_bytes = stored_bytes

    def state(self) -> Sequence[Metric]:
        """What is true now; nothing before `watch`. To be asked on the event loop, which owns all of it."""
        return () if self._snapshot is None else state_metrics(self._snapshot(), self._stored_bytes())


def state_metrics(state: Snapshot, stored_bytes: int) -> Sequence[Metric]:
    """The gauges of one moment."""
    waiting = GaugeMetricFamily("rexec_waiting_tasks", "Tasks in line.", labels=("platform",))
    oldest = GaugeMetricFamily(
        "rexec_oldest_waiting_seconds", "Since the task that waits longest was queued.", labels=("platform",)
    )
    for platform, count in state.waiting.items():
        waiting.add_metric((platform,), count)
        oldest.add_metric((platform,), state.oldest_seconds.get(platform, 0.0))
    workers = GaugeMetricFamily("rexec_workers", "Workers by state.", labels=("state",))
    for name, count in state.workers.items():
        workers.add_metric((name,), count)
    return (
        waiting,
        oldest,
        workers,
        GaugeMetricFamily("rexec_executing_tasks", "Tasks that have a worker.", value=state.executing),
        GaugeMetricFamily("rexec_operations", "Operations that can be asked for.", value=state.operations),
        GaugeMetricFamily("rexec_slots", "Slots of all ready workers.", value=state.slots),
        GaugeMetricFamily("rexec_busy_slots", "Slots that have a lease.", value=state.busy_slots),
        GaugeMetricFamily("rexec_stored_bytes", "Bytes in the blob store.", value=stored_bytes),
    )
