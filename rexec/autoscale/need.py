"""How many tasks of a kind should run at once, so that none waits longer than it may.

The measure is work: W seconds of it are started within T seconds by W / T tasks at a time. Three things change that:

- A task that lasts longer than T holds one place, however long it lasts: only its place counts, not its length.
- There are never more places than tasks.
- Work that has waited for longer than new workers needed to come, and T more, was underestimated, and is taken to be as much
  longer as it is late: estimates come from earlier runs, and some actions have none.
"""

from __future__ import annotations

import math
from typing import Final

from rexec.autoscale.view import Waiting

UNKNOWN_SECONDS: Final = 10.0
"""Taken for each task if nothing at all is known: about what a test or a slow compilation takes."""

LEAST_SECONDS: Final = 0.001
"""No task is done sooner: its fetching and reporting take time, too."""

MOST_SECONDS: Final = 1e12
"""Sums stay finite."""

LATEST: Final = 10.0
"""No estimate is taken to be wrong by more than this factor."""


def task_seconds(waiting: Waiting) -> float:
    """How long all of these tasks take one after the other."""
    expected = waiting.slot_seconds / max(1, waiting.slots)
    if not (expected > 0 and math.isfinite(expected)):
        return UNKNOWN_SECONDS * waiting.tasks
    return min(max(expected, LEAST_SECONDS * waiting.tasks), MOST_SECONDS)


def places(waiting: Waiting, target_wait_seconds: float, start_seconds: float, coming_seconds: float = 0.0) -> float:
    """How many of these tasks should run at once; of work that is done sooner than it may wait a fraction of one.

    `coming_seconds`: for how long workers have been on their way. So long it says nothing about estimates that work waits.
    """
    seconds = task_seconds(waiting)
    waited = waiting.oldest_seconds - coming_seconds
    late = min(LATEST, max(1.0, waited / (start_seconds + target_wait_seconds)))
    longest = min(max(waiting.longest_seconds, seconds / waiting.tasks), seconds)
    if longest > target_wait_seconds:
        # One is as long as that; how many others are is not known, and so they count with their length.
        return min(float(waiting.tasks), 1.0 + (seconds - longest) * late / target_wait_seconds)
    return min(float(waiting.tasks), seconds * late / target_wait_seconds)
