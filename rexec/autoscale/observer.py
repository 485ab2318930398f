"""What the loop tells those who count (rexec/autoscale_telemetry.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from protos.rexec.scheduler.v1 import autoscaling_pb2


class Observer(Protocol):
    """Is told what happens, and must return at once."""

    def pools(self, pools: Sequence[autoscaling_pb2.Pool]) -> None:
        """How the pools stand now; those that are not named are no more."""
        ...

    def asked(self, pool: str) -> None:
        """A worker was asked for. `pool` is the entry of the configuration, here and below."""
        ...

    def came(self, pool: str, seconds: float) -> None:
        """A worker is attached, so long after it was asked for."""
        ...

    def failed(self, pool: str) -> None:
        """A worker could not be started, or has not come."""
        ...

    def removed(self, pool: str, why: str) -> None:
        """A machine is being taken away: `why` is one of `left`, `failed`, `cancelled`, `lost`, `foreign`."""
        ...

    def decided(self, seconds: float) -> None:
        """So long was spent on a decision about all pools."""
        ...

    def heard(self, reached: bool) -> None:
        """Whether the scheduler has said something lately."""
        ...


class Unobserved:
    """Nobody counts."""

    def pools(self, pools: Sequence[autoscaling_pb2.Pool]) -> None:
        """See Observer."""

    def asked(self, pool: str) -> None:
        """See Observer."""

    def came(self, pool: str, seconds: float) -> None:
        """See Observer."""

    def failed(self, pool: str) -> None:
        """See Observer."""

    def removed(self, pool: str, why: str) -> None:
        """See Observer."""

    def decided(self, seconds: float) -> None:
        """See Observer."""

    def heard(self, reached: bool) -> None:
        """See Observer."""
