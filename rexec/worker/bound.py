"""When an action gets into its control group, and out of it.

To move a process takes the kernel some tens of milliseconds now and then. An action that is over sooner need not wait for that,
and takes little in such a time: it never gets a group. One that runs goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Final

from rexec.worker.control_groups import NO_GROUP, ActionGroup, ActionGroups

AFTER_SECONDS: Final = 0.02
"""Memory is filled with some GiB a second at most: what an action has by then, and what counts for the agent's group because it
was not moved yet, is less than a hundred MiB."""


class Bound:
    """Of one action. Lives on the event loop."""

    def __init__(self, groups: ActionGroups, memory_bytes: int) -> None:
        """`memory_bytes` is what it may take, 0 for any amount."""
        self._groups = groups
        self._memory_bytes = memory_bytes
        self._group: ActionGroup = NO_GROUP
        self._timer: asyncio.TimerHandle | None = None
        self._moving: asyncio.Future[None] | None = None

    def began(self, pid: int) -> None:
        """The action runs, and `pid` is its first process, whose number stays its own until `ended` has returned."""
        if self._groups.are_there:
            self._timer = asyncio.get_running_loop().call_later(AFTER_SECONDS, self._move, pid)

    async def ended(self) -> None:
        """It is to end, or has: kill what is in its group."""
        if self._timer is not None:
            self._timer.cancel()
        if self._moving is not None:
            await self._moving
        self._group.kill()

    def left(self) -> bool:
        """No process is left. Returns whether the kernel killed it for taking more than it may."""
        return self._group.end()

    def _move(self, pid: int) -> None:
        self._group = self._groups.group(self._memory_bytes)
        self._moving = asyncio.get_running_loop().run_in_executor(None, self._group.take, pid)
