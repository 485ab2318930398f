"""What the scheduler is told: how the pools are after every change of a figure, whom to drain, and whose machine has ended."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, Final

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.work_source import WorkSource

MAX_NAMES: Final = 500
"""Names in one message to the scheduler."""


class Telling:
    """To one scheduler."""

    def __init__(
        self, source: WorkSource, spawn: Callable[[Coroutine[Any, Any, None]], None], *, dry_run: bool
    ) -> None:
        """`spawn` has it done beside the loop. With `dry_run` nothing is told."""
        self._source = source
        self._spawn = spawn
        self._dry_run = dry_run
        self._told: autoscaling_pb2.Pools | None = None

    async def pools(self, pools: autoscaling_pb2.Pools) -> None:
        """The pools are so now."""
        if pools != self._told:
            self._told = pools
            if not self._dry_run:
                await self._source.tell(autoscaling_pb2.FromAutoscaler(pools=pools))

    def leave(self, names: Sequence[str], grace_seconds: float, reason: str, *, only_idle: bool) -> None:
        """These workers are to be drained."""
        for some in self._parts(names):
            leave = autoscaling_pb2.Leave(
                names=some, grace_seconds=grace_seconds, reason=reason, only_idle=only_idle
            )  # fmt: skip
            self._spawn(self._source.tell(autoscaling_pb2.FromAutoscaler(leave=leave)))

    def ended(self, names: Sequence[str]) -> None:
        """The machines of these workers are no more: what they ran need not wait for them."""
        for some in self._parts(names):
            self._spawn(
                self._source.tell(autoscaling_pb2.FromAutoscaler(ended=autoscaling_pb2.Ended(names=some)))
            )  # fmt: skip

    def _parts(self, names: Sequence[str]) -> Iterator[Sequence[str]]:
        for first in range(0, 0 if self._dry_run else len(names), MAX_NAMES):
            yield names[first : first + MAX_NAMES]
