"""Where the loop hears of work and workers: the scheduler in this process, or one that is dialled."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from protos.rexec.scheduler.v1 import autoscaling_pb2


class WorkSource(Protocol):
    """The scheduler, as the loop (rexec/autoscale/loop.py) sees it."""

    def snapshots(self) -> AsyncGenerator[autoscaling_pb2.ToAutoscaler, None]:
        """What waits and who works: at once, whenever it has changed, and every few seconds. Never ends and raises nothing: a
        scheduler that is away is looked for again and again, and meanwhile nothing comes."""
        ...

    async def tell(self, message: autoscaling_pb2.FromAutoscaler) -> None:
        """Tell the scheduler. Of one that is away the latest Pools are kept until it is back; workers to be drained are
        forgotten, because by then others may be the ones without work. Raises nothing."""
        ...
