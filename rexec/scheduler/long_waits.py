"""Whom the log is told of who waits for long although workers fit: one line for each platform, not for each action.

There is one deadline for each requirement that something waits with, whatever happens to the single tasks.
"""

from __future__ import annotations

from rexec.scheduler import events as e
from rexec.scheduler.deadlines import Due
from rexec.scheduler.reason import reason_of
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Task


def watch(state: QueueState, task: Task, now: float) -> None:
    """The task is in line: look later whether something waits there for too long."""
    seen, requirement = state.long_waits, task.candidate.requirement
    if requirement not in seen.names:
        seen.serial += 1
        seen.names[requirement] = name = str(seen.serial)
        seen.requirements[name] = requirement
        state.deadlines.add(now + state.settings.long_wait_seconds, Due.LONG_WAIT, name)


def look(state: QueueState, name: str, now: float) -> None:
    """The deadline of a requirement: have the log told if it is time, and look again as long as something waits."""
    seen, settings = state.long_waits, state.settings
    requirement = seen.requirements[name]
    groups = state.waiting.of_requirement(requirement)
    if not groups:
        del seen.requirements[name], seen.names[requirement]
        return
    oldest = min((task for group in groups for task in group.tasks.values()), key=lambda task: task.queued_at)
    waits_seconds = now - oldest.queued_at
    again = oldest.queued_at + settings.long_wait_seconds
    if waits_seconds >= settings.long_wait_seconds:
        again = now + settings.long_wait_seconds
        if state.fleet.fit_of(oldest).workers:  # else that is told already, and more often
            actions = sum(len(group.tasks) for group in groups)
            state.effects.append(e.TasksWaitLong(actions, waits_seconds, reason_of(oldest, state.fleet)))
    state.deadlines.add(again, Due.LONG_WAIT, name)
