"""`rexec serve`: everything in one process, and a local worker beside it.

    stores -> uploads, scheduler -> services -> ports -> local worker

Whoever depends on a part is stopped before it: the local worker hands back its leases while the scheduler still listens,
and the stores are closed last. The same parts make up `rexec scheduler` and `rexec frontend`.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog

from rexec.config import Config
from rexec.core import Core
from rexec.edge import CannotServe, Running, opened_edge
from rexec.garbage import look_for_garbage_rarely
from rexec.kept_process import KeptProcess
from rexec.leading import leading
from rexec.local import worker_command
from rexec.scheduler.clock import SystemClock
from rexec.scheduler.inputs import InputRoots
from rexec.services import offer_assets, offer_cache, offer_execution
from rexec.stores import StoreUnusable, open_held

__all__ = ["CannotServe", "Running", "running", "serve", "until_stopped"]

log = structlog.get_logger()

Ready = Callable[[tuple[str, ...]], None]
"""Is told the addresses once calls are answered."""

Beside = Callable[[Core, Running], AbstractAsyncContextManager[None]]
"""What runs while a server answers."""


async def serve(config: Config, config_file: Path | None, ready: Ready) -> None:
    """Serve until SIGINT or SIGTERM. Raises CannotServe."""

    @asynccontextmanager
    async def with_workers(core: Core, server: Running) -> AsyncIterator[None]:
        assert server.socket is not None
        async with core.pools(config, config_file, server.socket), AsyncExitStack() as stack:
            if config.local_slots > 0:
                await stack.enter_async_context(_local_worker(config, config_file, server.socket))
            yield

    await until_stopped(running(config, with_workers), ready)


async def until_stopped(
    role: AbstractAsyncContextManager[Running], ready: Ready, tell: Callable[[Running], None] = lambda _running: None
) -> None:
    """Keep a role running until SIGINT or SIGTERM; `tell` is called after `ready`. Raises CannotServe."""
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def leave() -> None:
        stop.set()
        if starting is not None:
            starting.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave)
    try:
        process = await role.__aenter__()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        log.info("stopped before it had started")
        return
    starting = None
    reason = ""
    async with _entered(role):
        look_for_garbage_rarely()
        ready(process.addresses)
        tell(process)
        if process.ends is not None:
            process.ends.add_done_callback(lambda _ends: stop.set())
        await stop.wait()
        if process.ends is not None and process.ends.done():
            reason = process.ends.result()
            log.error("this scheduler must not go on", reason=reason)
        else:
            log.info("stopping")
        process.health.drain()
    if reason:
        raise CannotServe(f"this scheduler must not go on: {reason}")


@asynccontextmanager
async def _entered(role: AbstractAsyncContextManager[Running]) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        if not await role.__aexit__(*sys.exc_info()):
            raise
    else:
        await role.__aexit__(None, None, None)


@asynccontextmanager
async def running(config: Config, beside: Beside | None = None) -> AsyncIterator[Running]:
    """A server of this configuration, until the block ends: without workers of its own, but for what runs `beside` it while it
    answers. Raises CannotServe."""
    clock = SystemClock()
    async with opened_edge(config) as edge, AsyncExitStack() as stack:
        try:
            held = await stack.enter_async_context(open_held(config))
        except StoreUnusable as error:
            raise CannotServe(str(error)) from error
        inputs = InputRoots(config.scheduler, clock)
        journal = await stack.enter_async_context(leading(config))
        core = Core(edge, config, held, inputs, clock, journal)
        others = offer_execution(edge, config, held, core.broker, inputs, clock)
        await stack.enter_async_context(offer_cache(edge.server, config, held, executes=True, others=others))
        await stack.enter_async_context(offer_assets(edge.server, config, held))
        server = await stack.enter_async_context(core.answering())
        if beside is not None:
            await stack.enter_async_context(beside(core, server))
        yield server


@asynccontextmanager
async def _local_worker(config: Config, config_file: Path | None, socket: Path) -> AsyncIterator[None]:
    """The local worker, drained at the end of the block."""
    command = worker_command(
        f"unix:{socket}", config.local_slots, config.state_path / "worker", config_file, config.worker.name
    )
    worker = KeptProcess("local worker", command)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(), name="local worker")
        try:
            yield
        finally:
            await worker.stop(config.server.stop_seconds)
