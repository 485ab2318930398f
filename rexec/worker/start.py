"""Bringing an agent up in a process of its own, and down again."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import structlog

from cas.store import BlobStore
from cas.tree import DirectoryCache
from rexec.worker.action import ActionContext
from rexec.worker.agent import Agent
from rexec.worker.announcement import announced
from rexec.worker.blob_files import BlobFiles
from rexec.worker.control_groups import ActionGroups, NoControlGroups, claimed
from rexec.worker.files import FileCache
from rexec.worker.isolations import isolation_of
from rexec.worker.kept_rooms import KeptRooms
from rexec.worker.limits import ActionLimits
from rexec.worker.link import Dial
from rexec.worker.memory_gauge import MemoryGauge
from rexec.worker.memory_watch import MemoryWatch, WatchLimits
from rexec.worker.observer import WorkerObserver
from rexec.worker.outage import Outage
from rexec.worker.processes import Processes, die_with_parent
from rexec.worker.reserves import least_available_bytes
from rexec.worker.runner import Runner
from rexec.worker.settings import MemoryLimit, WorkerSettings
from rexec.worker.slots import Slots
from rexec.worker.workspace import Workspace

_log = structlog.get_logger()

_PARSED_DIRECTORY_BYTES = 8 << 20
"""Of encoded Directory messages kept in memory; parsed they take about five times as much."""


class WorkDirectoryUnusable(Exception):
    """A directory of the worker cannot be used; the text names it, the reason and the option."""


async def run_agent(
    settings: WorkerSettings,
    dial: Dial,
    store_of: Callable[[str], BlobStore],
    observer: WorkerObserver | None = None,
) -> None:
    """Run a worker in this process until SIGTERM or SIGINT (a second one leaves at once), or until the scheduler drains it.

    `store_of` gives the store of an instance name. Raises FailedPrecondition if another agent holds the work directory,
    WorkDirectoryUnusable if it cannot be used, CannotIsolate if the machine has no means of the isolation configured.
    """
    os.umask(0o022)  # actions inherit it: the modes of what they make must not depend on who started the worker
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))  # a core file would be an output, or fill the disk
    loop = asyncio.get_running_loop()
    async with open_agent(settings, dial, store_of, observer) as agent:
        received: list[signal.Signals] = []

        def leave(number: signal.Signals) -> None:
            # Who sends it twice does not want to wait. Both may have come before this runs for the first time.
            received.append(number)
            if len(received) == 1:
                agent.drain(number.name, settings.drain_grace_seconds)
            else:
                agent.drain(f"{number.name}, again", 0.0)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave, number)
        try:
            if settings.parent_pid:
                # SIGHUP, because SIGTERM means that there is time.
                loop.add_signal_handler(signal.SIGHUP, agent.drain, "the parent process has ended", 0.0)
                die_with_parent(signal.SIGHUP)
                if os.getppid() != settings.parent_pid:  # it has ended already, so no signal will come
                    agent.drain("the parent process has ended", 0.0)
            await agent.run()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)


@asynccontextmanager
async def open_agent(
    settings: WorkerSettings,
    dial: Dial,
    store_of: Callable[[str], BlobStore],
    observer: WorkerObserver | None = None,
) -> AsyncIterator[Agent]:
    """An agent with its work directory claimed and its cache taken over, ready to `run`. Touches no signal handlers."""
    if not settings.work_dir:
        raise ValueError("work_dir is empty, expected the directory that actions run in")
    isolation = isolation_of(settings)
    await asyncio.to_thread(isolation.require)
    workspace = Workspace(settings.work_dir)
    kept = KeptRooms(workspace, settings.max_kept_rooms)
    groups: ActionGroups = NoControlGroups()
    try:
        with _usable(workspace.path, "--work-dir, or [worker] work_dir"):
            await asyncio.to_thread(workspace.claim)
            await asyncio.to_thread(isolation.prepare)
        cache_dir = settings.cache_dir or f"{workspace.path}/cache"
        with _usable(cache_dir, "--cache-dir, or [worker] cache_dir"):
            files = FileCache(BlobFiles(cache_dir), settings.cache_max_bytes)
            await files.adopt()
        memory = Path(workspace.path, "programs.json")
        found = await asyncio.to_thread(announced, settings.announce, settings.environment, memory)
        settings = msgspec.structs.replace(settings, properties={**found, **settings.properties})
        groups = await asyncio.to_thread(claimed, settings.control_groups)
        processes = Processes()
        processes.adopt_orphans()
        context = ActionContext(
            settings=settings,
            workspace=workspace,
            files=files,
            runner=runner_of(settings, processes, workspace, groups),
            slots=Slots(settings.slots),
            cache_is_beside=os.stat(cache_dir).st_dev == os.stat(workspace.path).st_dev,
            memory_bytes=settings.offered_resources().get("memory", 0),
            store_of=store_of,
            kept=kept,
            isolation=isolation,
            outage=Outage(settings.upload_patience_seconds),
            directories=DirectoryCache(max_bytes=_PARSED_DIRECTORY_BYTES),
        )
        yield Agent(context, dial, str(uuid.uuid4()), observer)
    finally:
        kept.drop_all()
        await asyncio.to_thread(groups.close)
        await asyncio.to_thread(workspace.close)


def runner_of(
    settings: WorkerSettings, processes: Processes, workspace: Workspace, groups: ActionGroups | None = None
) -> Runner:
    """What starts actions and holds them to the limits that are configured."""
    watch = MemoryWatch(
        limits=WatchLimits(
            max_processes=settings.max_processes,
            keeps_to_share=settings.memory_limit is MemoryLimit.SLOT,
            least_available_bytes=0 if settings.memory_limit is MemoryLimit.OFF else least_available_bytes(settings),
        ),
        orphans=processes.orphans,
        available_bytes=MemoryGauge().available_bytes,
    )
    limits = ActionLimits(settings.max_open_files, settings.file_max_bytes, settings.cache_max_bytes)
    return Runner(
        processes,
        settings.kill_grace_seconds,
        workspace.note_session,
        memory=watch,
        limits=limits,
        groups=groups,
        keeps_to_share=settings.memory_limit is MemoryLimit.SLOT,
    )


@contextmanager
def _usable(path: str, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as reason:
        said = (reason.strerror or str(reason)).lower()
        where = f" ({reason.filename})" if reason.filename and reason.filename != path else ""
        raise WorkDirectoryUnusable(f"directory {path} cannot be used: {said}{where}; see {option}") from reason
