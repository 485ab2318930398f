"""`rexec scheduler`: the queue in a process of its own, for frontends and workers.

It keeps the store too unless that is elsewhere, because the results of actions are checked here before anyone sees them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from rexec.config import Config
from rexec.core import Core
from rexec.edge import CannotServe, Running, opened_edge
from rexec.leading import leading
from rexec.scheduler.clock import SystemClock
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.journal import Journal
from rexec.services import offer_assets, offer_cache
from rexec.stores import StoreUnusable, open_held


@asynccontextmanager
async def running_scheduler(
    config: Config, as_core: bool = False, config_file: Path | None = None
) -> AsyncIterator[Running]:
    """A scheduler of this configuration, until the block ends. As the core of `rexec serve --processes` it listens on its
    Unix socket only, shares its store on disk with the frontends, and keeps the pools of workers; `config_file` is for those of
    this machine. Raises CannotServe."""
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        journal: Journal | None = None
        if not as_core:
            # Whoever stands by has no port and no store yet: both may be those of the one that leads.
            journal = await stack.enter_async_context(leading(config))
        edge = await stack.enter_async_context(opened_edge(config, with_ports=not as_core))
        if as_core:
            # Nobody stands by for a core: another server that has the state directory is a mistake, and told.
            journal = await stack.enter_async_context(leading(config))
        try:
            held = await stack.enter_async_context(open_held(config, "owner" if as_core else "alone"))
        except StoreUnusable as error:
            raise CannotServe(str(error)) from error
        core = Core(edge, config, held, InputRoots(config.scheduler, clock), clock, journal)
        if config.store.kind != "remote":
            await stack.enter_async_context(offer_cache(edge.server, config, held, executes=False))
        await stack.enter_async_context(offer_assets(edge.server, config, held))
        answering = await stack.enter_async_context(core.answering())
        if as_core:
            assert answering.socket is not None
            await stack.enter_async_context(core.pools(config, config_file, answering.socket))
        yield answering
