"""What people are told when no worker is attached: which pools could have some, or else how to start one."""

from __future__ import annotations

from typing import Final

from protos.rexec.scheduler.v1 import status_pb2

MAX_POOLS: Final = 8
"""Named; pools with container images may be many."""


def no_workers(overview: status_pb2.Overview) -> str:
    """One line, not yet harmless: names of pools are the autoscaler's words."""
    pools = named_pools(overview)
    return f"no worker is attached; {pools or 'start one with  rexec worker --server ...'}"


def named_pools(overview: status_pb2.Overview) -> str:
    """Such as "pools: linux (0 of at most 8)"; empty if there are none."""
    named = [_named(pool) for pool in overview.pools[:MAX_POOLS]]
    left_out = overview.pools_left_out + len(overview.pools) - len(named)
    if left_out:
        named.append(f"and {left_out} more")
    return f"pools: {', '.join(named)}" if named else ""


def _named(pool: status_pb2.PoolCount) -> str:
    said = [f"{pool.ready} of at most {pool.max}"]
    if pool.starting:
        said.append(f"{pool.starting} on the way")
    if pool.autoscaler_away:
        said.append("its autoscaler is away")
    return f"{pool.name} ({', '.join(said)})"
