"""Metrics in Prometheus' terms, and the HTTP port that shows them.

The parts of rexec know only small observer protocols; this is where their calls become counters. State (queue, workers)
is not counted but asked for when Prometheus scrapes, so that it can never drift.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cas.errors import Code
from rexec.address import host_and_port
from rexec.scheduler.observer import Snapshot

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that only says when the process started

_LATENCY_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Telemetry:
    """Counts what happens: an observer of RPCs (rexec/rpc.py) and of the scheduler (rexec/scheduler/observer.py)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._rpcs = Counter(
            "rexec_rpcs", "Calls ended, by method and gRPC status.", ("method", "code"), registry=self.registry
        )
        self._rpc_seconds = Histogram(
            "rexec_rpc_seconds", "Duration of calls.", ("method",), registry=self.registry, buckets=_LATENCY_SECONDS
        )
        self._executions = Counter(
            "rexec_executions", "Actions that workers ran, by how they ended.", ("result",), registry=self.registry
        )
        self._execution_seconds = Histogram(
            "rexec_execution_seconds",
            "From queueing an action to its completion.",
            registry=self.registry,
            buckets=_LATENCY_SECONDS,
        )
        self._queued_seconds = Histogram(
            "rexec_queued_seconds",
            "From queueing an action to its lease.",
            registry=self.registry,
            buckets=_LATENCY_SECONDS,
        )
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
        # A child is looked up by its label values in 2 us, and a call is served in 300: kept, because it costs nothing.
        self._rpc_children: dict[tuple[str, Code], Counter] = {}

    def rpc_ended(self, method: str, code: Code, seconds: float) -> None:
        """See RpcObserver."""
        child = self._rpc_children.get((method, code))
        if child is None:
            child = self._rpc_children[method, code] = self._rpcs.labels(method.lstrip("/"), code.name)
        child.inc()
        self._rpc_seconds.labels(method.lstrip("/")).observe(seconds)
        if method.endswith("/GetActionResult") and code in (Code.OK, Code.NOT_FOUND):
            self._lookups.labels("hit" if code is Code.OK else "miss").inc()

    def execution_finished(self, result: str, seconds: float) -> None:
        """See Observer."""
        self._executions.labels(result).inc()
        self._execution_seconds.observe(seconds)

    def lease_granted(self, queued_seconds: float) -> None:
        """See Observer."""
        self._queued_seconds.observe(queued_seconds)

    def task_retried(self, counted: bool) -> None:
        """See Observer."""
        self._retries.labels("yes" if counted else "no").inc()

    def action_cache_read(self, outcome: str) -> None:
        """See Observer."""
        self._lookups.labels(outcome).inc()

    def watch(self, snapshot: Callable[[], Snapshot], stored_bytes: Callable[[], int]) -> None:
        """Show the scheduler's state and the store's fill at each scrape."""
        self.registry.register(_State(snapshot, stored_bytes))


class _State(Collector):
    """What is true at the moment of the scrape."""

    def __init__(self, snapshot: Callable[[], Snapshot], stored_bytes: Callable[[], int]) -> None:
        self._snapshot = snapshot
        self._stored_bytes = stored_bytes

    def collect(self) -> Iterable[Metric]:
        state = self._snapshot()
        waiting = GaugeMetricFamily("rexec_waiting_tasks", "Tasks in line.", labels=("platform",))
        for platform, count in state.waiting.items():
            waiting.add_metric((platform,), count)
        workers = GaugeMetricFamily("rexec_workers", "Workers by state.", labels=("state",))
        for name, count in state.workers.items():
            workers.add_metric((name,), count)
        yield waiting
        yield workers
        yield GaugeMetricFamily("rexec_executing_tasks", "Tasks that have a worker.", value=state.executing)
        yield GaugeMetricFamily("rexec_operations", "Operations that can be asked for.", value=state.operations)
        yield GaugeMetricFamily("rexec_slots", "Slots of all ready workers.", value=state.slots)
        yield GaugeMetricFamily("rexec_busy_slots", "Slots that have a lease.", value=state.busy_slots)
        yield GaugeMetricFamily("rexec_stored_bytes", "Bytes in the blob store.", value=self._stored_bytes())


@contextmanager
def shown(registry: CollectorRegistry, address: str) -> Iterator[int]:
    """Serve the metrics at http://ADDRESS/metrics meanwhile; gives the port. Raises OSError if it is taken.

    A thread of the library's: scrapes are rare, and it must answer while the event loop is busy.
    """
    host, port = host_and_port(address)
    started: tuple[WSGIServer, threading.Thread] = start_http_server(port, host.strip("[]"), registry)
    server, thread = started
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
