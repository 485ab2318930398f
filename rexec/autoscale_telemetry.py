"""The metrics of an autoscaler in Prometheus' terms. deploy/metrics.md lists them."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from protos.rexec.scheduler.v1 import autoscaling_pb2

disable_created_metrics()  # type: ignore[no-untyped-call]  # as in rexec/telemetry.py

START_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
"""Buckets: from a process on this machine to a node that has to be bought first."""

DECISION_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)


class AutoscaleTelemetry:
    """An Observer (rexec/autoscale/observer.py). Gauges are set after each decision."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._workers = Gauge(
            "rexec_autoscale_workers", "Workers of a pool, by state.", ("pool", "state"), registry=registry
        )
        self._target = Gauge("rexec_autoscale_target", "Workers that a pool should have.", ("pool",), registry=registry)
        self._max = Gauge("rexec_autoscale_max", "Workers that a pool may have.", ("pool",), registry=registry)
        self._cost = Gauge(
            "rexec_autoscale_cost_today", "What a pool has cost since midnight UTC.", ("pool",), registry=registry
        )
        self._held_up = Gauge(
            "rexec_autoscale_held_up", "1 while a pool does not grow as it should.", ("pool",), registry=registry
        )
        self._starts = Counter("rexec_autoscale_starts", "Workers asked for.", ("pool",), registry=registry)
        self._failures = Counter(
            "rexec_autoscale_failed_starts", "Workers that were refused or did not come.", ("pool",), registry=registry
        )
        self._removals = Counter(
            "rexec_autoscale_removals", "Machines taken away, by why.", ("pool", "why"), registry=registry
        )
        self._start_seconds = Histogram(
            "rexec_autoscale_start_seconds",
            "From asking for a worker to its being attached.",
            ("pool",),
            registry=registry,
            buckets=START_SECONDS,
        )
        self._decisions = Histogram(
            "rexec_autoscale_decision_seconds",
            "How long it took to decide about all pools.",
            registry=registry,
            buckets=DECISION_SECONDS,
        )
        self._reached = Gauge(
            "rexec_autoscale_scheduler_reached", "1 while the scheduler says what waits.", registry=registry
        )
        self._shown: set[str] = set()

    def pools(self, pools: Sequence[autoscaling_pb2.Pool]) -> None:
        """See Observer."""
        for pool in pools:
            for state in ("ready", "starting", "leaving"):
                self._workers.labels(pool.name, state).set(getattr(pool, state))
            self._target.labels(pool.name).set(pool.target)
            self._max.labels(pool.name).set(pool.max)
            self._cost.labels(pool.name).set(pool.cost_today)
            self._held_up.labels(pool.name).set(bool(pool.problem))
        now = {pool.name for pool in pools}
        # Pools of images come and go; their counters are those of their entry in the configuration.
        for name in self._shown - now:
            for state in ("ready", "starting", "leaving"):
                self._workers.remove(name, state)
            for gauge in (self._target, self._max, self._cost, self._held_up):
                gauge.remove(name)
        self._shown = now

    def asked(self, pool: str) -> None:
        """See Observer."""
        self._starts.labels(pool).inc()

    def came(self, pool: str, seconds: float) -> None:
        """See Observer."""
        self._start_seconds.labels(pool).observe(seconds)

    def failed(self, pool: str) -> None:
        """See Observer."""
        self._failures.labels(pool).inc()

    def removed(self, pool: str, why: str) -> None:
        """See Observer."""
        self._removals.labels(pool, why).inc()

    def decided(self, seconds: float) -> None:
        """See Observer."""
        self._decisions.observe(seconds)

    def heard(self, reached: bool) -> None:
        """See Observer."""
        self._reached.set(reached)
