"""Starts that failed, of all pools: told, counted, and what they hold back (rexec/autoscale/backoff.py)."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Final

import structlog

from rexec.autoscale.backoff import Backoff
from rexec.autoscale.clock import Clock
from rexec.autoscale.hold import FREE, Hold
from rexec.autoscale.observer import Observer
from rexec.autoscale.provider import Refused

log = structlog.get_logger()

GIVE_UP_SECONDS: Final = 1.0
"""Starts that are under way are not tried for so long after one of the same pool was refused for good, or until later."""


class Failures:
    """By pool."""

    def __init__(self, clock: Clock, observer: Observer, chance: random.Random) -> None:
        self._clock = clock
        self._observer = observer
        self._chance = chance
        self._backoffs: dict[str, Backoff] = {}
        self._useless_until: dict[str, float] = {}

    def failed(self, pool: str, family: str, worker: str, reason: str, refusal: Refused | None = None) -> None:
        """A worker of the pool was not started, or has not come; `refusal` if its provider said so."""
        now = self._clock.monotonic()
        log.warning("a worker failed to start", pool=pool, worker=worker, why=reason)
        self._observer.failed(family)
        retry_after_seconds = refusal.retry_after_seconds if refusal is not None else None
        lasting = refusal is not None and refusal.lasting
        self._backoffs.setdefault(pool, Backoff()).failed(
            reason,
            now,
            jitter=self._chance.random(),
            retry_after_seconds=retry_after_seconds,
            lasting=lasting,
        )
        if lasting or retry_after_seconds is not None:
            self._useless_until[pool] = now + GIVE_UP_SECONDS

    def came(self, pool: str, seconds: float) -> None:
        """A worker of the pool is attached, so long after it was asked for."""
        if pool in self._backoffs:
            self._backoffs[pool].came(self._clock.monotonic(), seconds)

    def hold(self, pool: str, starting: int) -> Hold:
        """What the pool may start now, with so many on their way."""
        backoff = self._backoffs.get(pool)
        return backoff.hold(self._clock.monotonic(), starting) if backoff is not None else FREE

    def useless(self, pool: str) -> bool:
        """Whether a start that was decided before the last failure need not be tried."""
        return self._clock.monotonic() < self._useless_until.get(pool, float("-inf"))

    def keep(self, pools: Collection[str]) -> None:
        """Forget all others, once they would be allowed to start something: a pool for an image is gone when nothing waits for
        it, and whoever asks for it again and again is to meet the same pauses."""
        now = self._clock.monotonic()
        for name in [name for name in self._backoffs if name not in pools]:
            if self._backoffs[name].next_try_seconds(now) == 0:
                del self._backoffs[name]
        for name in [name for name, until in self._useless_until.items() if until <= now]:
            del self._useless_until[name]
