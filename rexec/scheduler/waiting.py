"""Tasks in line, grouped by what makes them wait: those of a group want the same of a worker, avoid the same workers and
belong to the same owner. There are few groups and many tasks, so what is told of waiting is asked of groups.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from rexec.scheduler.accounts import expected_of, slots_of
from rexec.scheduler.need import Need
from rexec.scheduler.platform import Requirement
from rexec.scheduler.task import Owner, Task

Key = tuple[Need, frozenset[str], Owner]


@dataclass(slots=True, eq=False)
class Group:
    """Tasks that wait for the same."""

    requirement: Requirement
    owner: Owner
    tasks: dict[str, Task] = field(default_factory=dict)
    """By id, in the order in which they came into line. Never empty."""
    known_slot_seconds: float = 0.0
    """What those are expected to take of which something is known."""
    unknown_slots: int = 0
    """Slots that the others will take."""

    @property
    def oldest_at(self) -> float:
        """When the task was queued that waits longest: it need not be the first, for one that is tried again comes last.
        Costs the number of tasks."""
        return min(task.queued_at for task in self.tasks.values())

    def expect(self, task: Task, by: int) -> None:
        """The task has come (1) or gone (-1)."""
        if task.expected_seconds is None:
            self.unknown_slots += by * slots_of(task)
        else:
            self.known_slot_seconds += by * expected_of(task)

    def expected_slot_seconds(self, usual_seconds: float) -> float:
        """What they will take; one of a kind that never ran takes `usual_seconds`."""
        return max(0.0, self.known_slot_seconds) + self.unknown_slots * usual_seconds


class Waiting:
    """The groups."""

    def __init__(self) -> None:
        self._groups: dict[Requirement, dict[Key, Group]] = {}

    def __iter__(self) -> Iterator[Group]:
        return (group for groups in self._groups.values() for group in groups.values())

    def by_requirement(self) -> Iterable[tuple[Requirement, Collection[Group]]]:
        """The groups of each requirement that something waits with."""
        return ((requirement, groups.values()) for requirement, groups in self._groups.items())

    def of_requirement(self, requirement: Requirement) -> Collection[Group]:
        """Its groups."""
        return self._groups.get(requirement, {}).values()

    def joined(self, task: Task) -> None:
        """The task is in line."""
        requirement, key = task.candidate.requirement, _key(task)
        groups = self._groups.setdefault(requirement, {})
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(requirement, task.candidate.owner)
        group.tasks[task.task_id] = task
        group.expect(task, 1)

    def left(self, task: Task) -> None:
        """The task is in line no more; its exclusions are still those that it waited with."""
        requirement, key = task.candidate.requirement, _key(task)
        groups = self._groups[requirement]
        group = groups[key]
        del group.tasks[task.task_id]
        group.expect(task, -1)
        if not group.tasks:
            del groups[key]
            if not groups:
                del self._groups[requirement]

    def of(self, task: Task) -> Group:
        """The group of a task in line."""
        return self._groups[task.candidate.requirement][_key(task)]


def _key(task: Task) -> Key:
    return task.need, task.excluded, task.candidate.owner


@dataclass(slots=True)
class LongWaits:
    """Requirements that have a deadline of rexec/scheduler/long_waits.py, and what it is called."""

    names: dict[Requirement, str] = field(default_factory=dict)
    requirements: dict[str, Requirement] = field(default_factory=dict)
    serial: int = 0
