"""How long a pool is left alone after workers of it failed to start, and how carefully it is tried again.

A failure is whatever shows that asking for more is of no use now: the cluster refuses, a machine is hopeless or does not come
in time, a worker ends as soon as it has come. Each pool has its own, so a pool that cannot start leaves others alone, and the
policy gives its work to them. After a failure nothing is started for two seconds, after the next one for four, up to five
minutes; then no more than two workers are tried at a time until one of them has come.
"""

from __future__ import annotations

import math
from typing import Final

from rexec.autoscale.hold import FREE, Hold

FIRST_SECONDS: Final = 2.0
LONGEST_SECONDS: Final = 300.0
LASTING_SECONDS: Final = 30.0
"""The first pause if somebody has to change something (a quota, a permission) before it can work."""

PROBES: Final = 2
"""Workers that are tried at once while it is not known whether any can start: two, for one may be unlucky."""

TRIAL_SECONDS: Final = 60.0
"""A failure so soon after a worker has come takes up the pauses where they were: a worker that ends at once has come, too."""

JITTER: Final = 0.25
"""The part of a pause that chance may take off, so that several autoscalers do not all try at once."""

MAX_REASON_CHARACTERS: Final = 300


class Backoff:
    """The failures of one pool. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._failures = 0
        """In a row; those of one round of tries count once."""
        self._failures_before = 0
        """Those that the last worker that came has ended."""
        self._failed_at = -math.inf
        self._came_at = -math.inf
        self._held_until = -math.inf
        self._pause_seconds = 0.0
        self._reason = ""

    def failed(
        self,
        reason: str,
        now: float,
        *,
        jitter: float = 0.0,
        retry_after_seconds: float | None = None,
        lasting: bool = False,
    ) -> None:
        """A worker could not be started. `jitter` is a random number of [0, 1); the rest is as in provider.Refused."""
        first_of_round = now >= self._held_until
        if first_of_round:
            if now - self._came_at < TRIAL_SECONDS:
                self._failures = max(self._failures, self._failures_before)
            self._failures += 1
            # The exponent is bounded, or the power would overflow after a thousand failures.
            pause = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._failures - 1, 20))
            if lasting:
                pause = min(LONGEST_SECONDS, max(pause, LASTING_SECONDS * 2.0 ** min(self._failures - 1, 20)))
            self._hold(pause * (1 - JITTER * jitter), now)
        if retry_after_seconds is not None and math.isfinite(retry_after_seconds):
            # Whoever refuses knows best when it makes sense again, but is not obeyed for hours.
            asked = min(LONGEST_SECONDS, max(0.0, retry_after_seconds))
            if now + asked > self._held_until:
                self._hold(asked, now)
        self._failed_at = now
        self._reason = reason[:MAX_REASON_CHARACTERS]

    def came(self, now: float, age_seconds: float = 0.0) -> None:
        """A worker has come, asked for so long ago. One that was asked for before the last failure proves nothing."""
        if now - age_seconds < self._failed_at:
            return
        if self._failures:
            self._failures_before = self._failures
            self._came_at = now
        self._failures = 0
        self._held_until = -math.inf

    def hold(self, now: float, starting: int) -> Hold:
        """What may be started now, with so many on their way."""
        if not self._failures:
            return FREE
        times = "a worker failed to start" if self._failures == 1 else f"{self._failures} times workers failed to start"
        why = f"{times}, tried again after {math.ceil(self._pause_seconds)}s: {self._reason}"
        return Hold(0 if now < self._held_until else max(0, PROBES - starting), why)

    def next_try_seconds(self, now: float) -> float:
        """Until it makes sense to decide again; 0 if nothing is held."""
        return max(0.0, self._held_until - now) if self._failures else 0.0

    def _hold(self, seconds: float, now: float) -> None:
        self._held_until = now + seconds
        self._pause_seconds = seconds
