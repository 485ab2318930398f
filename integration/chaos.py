"""Kills one process of an installation after the other while a build goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

from integration.installation import Death, Installation, Role

PERIOD_SECONDS = 3.0


class Chaos:
    """What has been killed so far. `failure` is why the killing ended early, if it did."""

    def __init__(self, installation: Installation, roles: Sequence[Role], seed: int, period_seconds: float) -> None:
        self._installation = installation
        self._roles = roles
        self._period_seconds = period_seconds
        self._random = Random(seed)
        self._ended = threading.Event()
        self.deaths: list[Death] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        """Kill a member of a random role each period, and start it again at once, until `end`."""
        due = time.monotonic() + self._period_seconds
        try:
            while not self._ended.wait(max(0.0, due - time.monotonic())):
                # First the role, or the kind with the most processes would get nearly all of it.
                role = self._random.choice(self._roles)
                member = self._random.choice(self._installation.of_role(role))
                self.deaths.append(member.kill_and_start())
                # On a machine where a start takes longer than the period, those who are left get some time all the same.
                due = max(due + self._period_seconds, time.monotonic() + self._period_seconds / 2)
        except AssertionError as failure:
            self.failure = failure

    def end(self) -> None:
        """No more deaths."""
        self._ended.set()


@contextmanager
def chaos(
    installation: Installation, roles: Sequence[Role], seed: int, period_seconds: float = PERIOD_SECONDS
) -> Iterator[Chaos]:
    """Deaths until the end of the block. Raises AssertionError with the log of a process that did not come back."""
    kills = Chaos(installation, roles, seed, period_seconds)
    thread = threading.Thread(target=kills.run, name="chaos")
    thread.start()
    try:
        yield kills
    except AssertionError as failure:
        if kills.failure is not None:  # which is then the cause
            raise kills.failure from failure
        raise
    finally:
        kills.end()
        thread.join()
    if kills.failure is not None:
        raise kills.failure
