"""The metrics of a worker process in Prometheus' terms. deploy/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from cas.metered import Metered
from cas.store import BlobStore
from rexec.telemetry import LATENCY_SECONDS
from rexec.worker.observer import WorkerState


class WorkerTelemetry:
    """A WorkerObserver (rexec/worker/observer.py) that also counts what stores move."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._phases = Histogram(
            "rexec_worker_phase_seconds",
            "How long leases were in each phase.",
            ("phase",),
            registry=self.registry,
            buckets=LATENCY_SECONDS,
        )
        self._ended = Counter(
            "rexec_worker_leases_ended",
            "Leases that ended, by why they came to nothing.",
            ("failure",),
            registry=self.registry,
        )
        blob_bytes = Counter(
            "rexec_worker_blob_bytes", "Bytes of blobs, fetched or uploaded.", ("direction",), registry=self.registry
        )
        self._fetched = blob_bytes.labels("fetched")
        self._uploaded = blob_bytes.labels("uploaded")
        self._state: Callable[[], WorkerState] | None = None

    def metered(self, store: BlobStore) -> BlobStore:
        """The store, with its bytes counted."""
        return Metered(store, self._fetched.inc, self._uploaded.inc)

    def watch(self, state: Callable[[], WorkerState]) -> None:
        """See WorkerObserver."""
        self._state = state

    def phase_ended(self, phase: str, seconds: float) -> None:
        """See WorkerObserver."""
        self._phases.labels(phase).observe(seconds)

    def lease_ended(self, failure: str) -> None:
        """See WorkerObserver."""
        self._ended.labels(failure).inc()

    def state(self) -> Sequence[Metric]:
        """What is true now; nothing before the agent is up. To be asked on the event loop."""
        if self._state is None:
            return ()
        state = self._state()
        leases = GaugeMetricFamily("rexec_worker_leases", "Leases held, by phase.", labels=("phase",))
        for phase, count in state.leases.items():
            leases.add_metric((phase,), count)
        return (
            leases,
            GaugeMetricFamily("rexec_worker_slots", "Actions that run at once.", value=state.slots),
            GaugeMetricFamily("rexec_worker_cache_bytes", "Bytes of input files kept.", value=state.cache_bytes),
            GaugeMetricFamily("rexec_worker_attached", "1 while the scheduler is reached.", value=state.is_attached),
        )

    def unready(self) -> str:
        """Why the worker takes no leases; "" if it does."""
        if self._state is None:
            return "the worker is starting"
        state = self._state()
        if state.draining:
            return f"the worker is leaving: {state.draining}"
        return "" if state.is_attached else "the scheduler is not reached"
