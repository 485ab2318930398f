"""Several processes on one disk store: an owner in a process of its own, and a store whose calls go to all of them in turn."""

from __future__ import annotations

import asyncio
import itertools
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from cas.action_cache import ActionCache, ActionKey
from cas.digest import Digest
from cas.disk import DiskStore
from cas.errors import StatusError
from cas.shared_disk import SharedDisk
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

OWNER = """
import asyncio, sys
from pathlib import Path
from cas.disk import DiskStore

async def main(root, max_bytes):
    async with DiskStore(root, max_bytes, shared=True):
        print("ready", flush=True)
        loop = asyncio.get_running_loop()
        # Until the test is gone, or says so.
        await loop.run_in_executor(None, sys.stdin.read)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


async def eventually(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds, which another process or a message on its way brings about."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110  # nothing here could set an event
            await asyncio.sleep(0)


@asynccontextmanager
async def owner_process(path: Path, max_bytes: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process that owns the shared store in `path`; the block may kill it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OWNER,
        str(path),
        str(max_bytes),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while await process.stdout.readline() not in (b"ready\n", b""):
            pass  # the log
        yield process
    finally:
        if process.returncode is None:
            process.stdin.close()
            process.send_signal(signal.SIGCONT)
        await process.communicate()


class InTurn:
    """A BlobStore whose calls go to each of `stores` in turn. What guests used is told before the next one's turn, since
    a contract on the order of use is kept to half a second only between them."""

    def __init__(self, stores: Sequence[DiskStore | SharedDisk]) -> None:
        self._stores = stores
        self._turns = itertools.cycle(stores)

    async def _next(self) -> DiskStore | SharedDisk:
        for store in self._stores:
            if isinstance(store, SharedDisk):
                await store.report()
        return next(self._turns)

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        return await (await self._next()).find_missing(digests)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return await (await self._next()).read_many(digests)

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        return await (await self._next()).write_many(blobs)

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        await (await self._next()).put(digest, chunks)

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        async with (await self._next()).open(digest, offset, limit) as pieces:
            yield pieces


class ResultsInTurn:
    """An ActionCache whose calls go to each of `caches` in turn."""

    def __init__(self, caches: Sequence[ActionCache]) -> None:
        self._turns = itertools.cycle(caches)

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        return await next(self._turns).get(key)

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        await next(self._turns).put(key, result)
