"""The log's lines about changes of pools: one for each decision from which something follows."""

from __future__ import annotations

from collections.abc import Container

import structlog

from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.fleet_view import FleetView
from rexec.autoscale.view import MemberState

log = structlog.get_logger()


class DecisionLog:
    """Remembers the last decision on each pool."""

    def __init__(self, *, dry_run: bool) -> None:
        """With `dry_run` nothing is done, so that the same is decided again and again, and said once."""
        self._dry_run = dry_run
        self._last: dict[str, PoolDecision] = {}

    def keep(self, pools: Container[str]) -> None:
        """Forget all other pools."""
        self._last = {name: decision for name, decision in self._last.items() if name in pools}

    def note(self, pool: str, decision: PoolDecision, cancelled: int, view: FleetView) -> None:
        """This has been decided. `cancelled`: how many of those to be cancelled there are."""
        before = self._last.get(pool)
        self._last[pool] = decision
        same = before is not None and (before.target, before.missing) == (decision.target, decision.missing)
        if not (decision.start or cancelled or decision.leave) or (self._dry_run and same):
            return
        members = [member for member in view.members if member.pool == pool]
        log.info(
            "pool would change" if self._dry_run else "pool changes",
            pool=pool,
            workers=sum(member.state is not MemberState.LEAVING for member in members),
            target=decision.target,
            starts=decision.start,
            leave=len(decision.leave),
            cancelled=cancelled,
            why=decision.reason,
        )
