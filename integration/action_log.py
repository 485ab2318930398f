"""What the actions of the chaos workspace wrote down of themselves, held against who was killed when.

An action may run again only if it has to. That is so when the worker that ran it was killed before its result can have
been reported: while it ran, or within REPORT_SECONDS of its end. Time in which a process between the worker and the queue
was down, or has just come back, does not count, because nothing could be reported in it. In every other case a second run is
a fault: its worker lived, or had told of the result long before it died.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from integration.installation import Death, Role

REPORT_SECONDS = 2.0
"""In which a worker on a busy machine collects and uploads the outputs and is told that its result has been taken."""
RECONNECT_SECONDS = 2.0
"""After the start of a frontend or scheduler, until all that were connected to it are again."""

INIT: Final = 1
"""The parent of a process whose parent has died."""

ORPHAN_SECONDS: Final = 5.0
"""How long a shell may take, on a busy machine, from its start to its first words."""


@dataclass(slots=True)
class Run:
    """One run of an action, in seconds of the clock on the wall."""

    action: str
    worker_pid: int
    started_at: float
    ended_at: float | None = None


def read(log: Path) -> list[Run]:
    """All runs, in the order of their starts. Raises ValueError for a line that is none of the workspace's."""
    runs: list[Run] = []
    running: dict[tuple[str, int], Run] = {}
    for line in log.read_text().splitlines():
        what, action, pid, when = line.split()
        key = (action, int(pid))
        if what == "start":
            running[key] = run = Run(action, int(pid), float(when))
            runs.append(run)
        elif what == "end":
            running.pop(key).ended_at = float(when)
        else:
            raise ValueError(f"line {line!r}, expected start or end")
    return sorted(runs, key=lambda run: run.started_at)


def needless(runs: Sequence[Run], deaths: Sequence[Death]) -> list[str]:
    """A sentence for each run that the one before it made needless."""
    by_action: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_action[run.action].append(run)
    killed_at = {death.pid: death.at for death in deaths if death.role is Role.WORKER}
    found = []
    for action, all_runs in by_action.items():
        for run, again in pairwise(all_runs):
            died_at = _orphaned_at(run, deaths) if run.worker_pid == INIT else killed_at.get(run.worker_pid)
            story = f"{action} ran from {run.started_at:.2f} to {run.ended_at or 0:.2f} on {run.worker_pid}"
            story += f" and again from {again.started_at:.2f} on {again.worker_pid}"
            if died_at is None or died_at > again.started_at:
                found.append(f"{story}, and the first worker lived")
            elif run.ended_at is not None and run.ended_at < died_at:
                could_report = _undisturbed_seconds(run.ended_at, died_at, deaths)
                if could_report > REPORT_SECONDS:
                    found.append(f"{story}, and the first worker had {could_report:.1f} s to report before its death")
    return found


def longest_gap(runs: Sequence[Run], begin: float, end: float) -> float:
    """The longest time without the start of an action among those from the last one before `begin` to the first one after
    `end`."""
    before = [run.started_at for run in runs if run.started_at <= begin]
    after = [run.started_at for run in runs if run.started_at >= end]
    first, last = max(before, default=begin), min(after, default=end)
    starts = sorted(run.started_at for run in runs if first <= run.started_at <= last)
    return max((later - earlier for earlier, later in pairwise(starts)), default=0.0)


def _orphaned_at(run: Run, deaths: Sequence[Death]) -> float | None:
    """When the worker of a run died whose shell was already an orphan when it asked for its parent: the last death of a worker
    before, which must be a moment ago."""
    before = [death.at for death in deaths if death.role is Role.WORKER and death.at <= run.started_at]
    last = max(before, default=0.0)
    return last if run.started_at - last <= ORPHAN_SECONDS else None


def _undisturbed_seconds(begin: float, end: float, deaths: Sequence[Death]) -> float:
    """How long of that time everything between workers and queue was up."""
    left = begin
    total = 0.0
    for death in sorted(deaths, key=lambda death: death.at):
        if death.role is not Role.WORKER:
            total += max(0.0, min(death.at, end) - left)
            left = max(left, min(end, death.ready_at + RECONNECT_SECONDS))
    return total + max(0.0, end - left)
