"""The pools of a configuration, with the one that `rexec serve --workers` stands for."""

from __future__ import annotations

import msgspec

from rexec.autoscale.settings import AutoscaleSettings, PoolKind, PoolSettings
from rexec.config import LOCAL_POOL, Config

LOCAL_IDLE_SECONDS = 60.0
"""`idle_seconds` of --workers unless [[autoscale.pools]] says otherwise: a process is soon there again."""
LOCAL_START_SECONDS = 1.5
"""The same of `start_seconds`."""


def autoscaling_of(config: Config) -> AutoscaleSettings:
    """[autoscale], with the pool that `workers` is about."""
    settings = config.autoscale
    if not config.workers:
        return settings
    least, most = config.worker_range
    pools = {pool.name: pool for pool in settings.pools}
    pool = pools.get(LOCAL_POOL) or PoolSettings(
        name=LOCAL_POOL, kind=PoolKind.LOCAL, idle_seconds=LOCAL_IDLE_SECONDS, start_seconds=LOCAL_START_SECONDS
    )
    slots = pool.slots if config.slots is None else config.slots
    pools[LOCAL_POOL] = msgspec.structs.replace(pool, min=least, max=most, slots=slots)
    return msgspec.structs.replace(settings, pools=tuple(pools.values()))
