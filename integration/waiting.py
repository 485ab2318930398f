"""Waiting for something outside this process: a condition is asked for again until it holds or a deadline passes.

The only place in integration/ and bench/ that sleeps; tests say what they wait for and never how long it takes.
"""

import time
from collections.abc import Callable

POLL_SECONDS = 0.02


def wait_until(condition: Callable[[], bool], what: str, deadline_seconds: float) -> None:
    """Return once `condition` holds. Raises AssertionError naming `what` when the deadline passes first.

    An exception of the condition ends the waiting: conditions raise when what they wait for can no longer happen.
    """
    end = time.monotonic() + deadline_seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline_seconds:g} s in vain for: {what}")
        time.sleep(POLL_SECONDS)
