"""DiskActionCache: restarts, damage, bounds."""

from __future__ import annotations

import asyncio
import errno
import signal
import sqlite3
import sys
from pathlib import Path

import pytest

from cas.action_cache import ActionCache, ActionKey
from cas.action_cache_disk import DiskActionCache
from cas.bounded_table import ENTRY_BYTES
from cas.digest import Digest
from cas.errors import ActionResultNotFound, StoreFull, Unavailable
from cas.file_lock import DirectoryUnusable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

HOUR = 3600.0


def key(name: str) -> ActionKey:
    return ActionKey("main", Digest.of(name.encode()))


def result(size_bytes: int = 10) -> re_pb2.ActionResult:
    return re_pb2.ActionResult(stdout_raw=b"x" * size_bytes)


def opened(
    path: Path, max_entries: int = 1000, max_bytes: int = 1 << 30, now: list[float] | None = None
) -> DiskActionCache:
    moment = now if now is not None else [0.0]
    return DiskActionCache(
        path / "results.sqlite3", max_entries=max_entries, max_bytes=max_bytes, clock=lambda: moment[0]
    )


async def known(cache: ActionCache, names: str) -> str:
    found = ""
    for name in names:
        try:
            await cache.get(key(name))
        except ActionResultNotFound:
            continue
        found += name
    return found


async def test_results_are_there_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        await cache.put(key("a"), result())
        await cache.put(key("b"), result(20))
        await cache.put(key("b"), result(30))

    async with opened(tmp_path) as cache:
        assert len(cache) == 2
        assert await cache.get(key("b")) == result(30)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from cas.action_cache import ActionKey
from cas.action_cache_disk import DiskActionCache
from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

async def main(path):
    async with DiskActionCache(path, max_entries=1000, max_bytes=1 << 30) as cache:
        for name in "abc":
            await cache.put(ActionKey("main", Digest.of(name.encode())), re_pb2.ActionResult(stdout_raw=b"x" * 10))
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main(Path(sys.argv[1])))
"""


async def test_a_killed_process_loses_no_result(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(tmp_path / "results.sqlite3"))
    assert await process.wait() == -signal.SIGKILL

    async with opened(tmp_path) as cache:
        assert await known(cache, "abc") == "abc"


async def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    now = [0.0]
    async with opened(tmp_path, now=now) as cache:
        for name in "abc":
            now[0] += 1
            await cache.put(key(name), result())
        now[0] += 2 * HOUR
        await cache.get(key("a"))

    async with opened(tmp_path, max_entries=2, now=now) as cache:
        now[0] += 1
        await cache.put(key("d"), result())
        assert await known(cache, "abcd") == "ad"


async def test_use_is_recorded_once_an_hour(tmp_path: Path) -> None:
    now = [0.0]
    async with opened(tmp_path, now=now) as cache:
        await cache.put(key("a"), result())
        changes = cache._table.database.total_changes
        now[0] = HOUR
        await cache.get(key("a"))
        assert cache._table.database.total_changes == changes
        now[0] = HOUR + 1
        await cache.get(key("a"))
        await cache.get(key("a"))
        assert cache._table.database.total_changes == changes + 1


async def test_the_bytes_are_bounded_too(tmp_path: Path) -> None:
    charged = result(1000).ByteSize() + ENTRY_BYTES
    async with opened(tmp_path, max_bytes=3 * charged) as cache:
        for name in "abcde":
            await cache.put(key(name), result(1000))
        assert await known(cache, "abcde") == "cde"
        await cache.put(key("f"), result(2000))
        assert await known(cache, "abcdef") == "ef"


async def test_a_result_that_can_never_fit_is_refused_and_pushes_nothing_out(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=10_000) as cache:
        await cache.put(key("a"), result())
        with pytest.raises(StoreFull):
            await cache.put(key("b"), result(10_000))
        assert await known(cache, "ab") == "a"


@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says" * 100, b"SQLite format 3\0" + b"\xff" * 5000]
)
async def test_a_file_that_is_no_database_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.sqlite3").write_bytes(content)

    async with opened(tmp_path) as cache:
        await cache.put(key("a"), result())
        assert await known(cache, "a") == "a"

    assert (tmp_path / "results.sqlite3.damaged").read_bytes() == content


async def test_a_file_of_another_layout_is_moved_aside(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "results.sqlite3") as other:
        other.execute("PRAGMA user_version = 99")
    other.close()

    async with opened(tmp_path) as cache:
        assert len(cache) == 0
        await cache.put(key("a"), result())
        assert await known(cache, "a") == "a"
    assert (tmp_path / "results.sqlite3.damaged").exists()


async def test_damage_found_on_the_way_starts_a_fresh_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        for number in range(200):
            await cache.put(key(str(number)), result(2000))
    path = tmp_path / "results.sqlite3"
    size_bytes = path.stat().st_size
    content = bytearray(path.read_bytes())
    # The first two pages stay: the file opens, and fails when rows are read.
    content[3 * 4096 :] = b"\xa5" * (size_bytes - 3 * 4096)
    path.write_bytes(content)

    async with opened(tmp_path) as cache:
        assert await known(cache, "a") == ""
        await cache.put(key("a"), result())
        assert await known(cache, "a") == "a"
        assert len(cache) == 1
    assert (tmp_path / "results.sqlite3.damaged").exists()


async def test_a_result_that_does_not_parse_is_not_found_and_can_be_replaced(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        await cache.put(key("a"), result())
        cache._table.database.execute("UPDATE results SET result = x'ffffff'")

        assert await known(cache, "a") == ""
        await cache.put(key("a"), result())
        assert await known(cache, "a") == "a"


async def test_a_full_disk_is_a_full_store(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        await cache.put(key("a"), result())
        (pages,) = cache._table.database.execute("PRAGMA page_count").fetchone()
        cache._table.database.execute(f"PRAGMA max_page_count = {pages}")

        with pytest.raises(StoreFull):
            await cache.put(key("b"), result(1 << 20))

        cache._table.database.execute("PRAGMA max_page_count = 1000000")
        assert await known(cache, "ab") == "a"
        assert len(cache) == 1
        await cache.put(key("b"), result(1 << 20))
        assert await known(cache, "ab") == "ab"


async def test_a_file_in_use_is_refused_by_name(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(DirectoryUnusable, match=r"results\.sqlite3 is in use"):
            await opened(tmp_path).__aenter__()


async def test_a_file_that_cannot_be_made_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("cas.file_lock.os.open", refuse)
    with pytest.raises(DirectoryUnusable, match="Permission denied"):
        await opened(tmp_path).__aenter__()


async def test_the_log_is_moved_into_the_file_while_results_arrive(tmp_path: Path) -> None:
    path = tmp_path / "results.sqlite3"
    async with opened(tmp_path) as cache:
        for number in range(300):
            await cache.put(key(str(number)), result(2000))
        before = path.stat().st_size
        await cache.checkpoint()
        assert path.stat().st_size > before + 300 * 2000
        await cache.put(key("a"), result())
        assert await known(cache, "a") == "a"


async def test_a_disk_that_takes_nothing_more_still_gives_what_it_has(tmp_path: Path) -> None:
    now = [0.0]
    async with opened(tmp_path, now=now) as cache:
        await cache.put(key("a"), result())
        cache._table.database.execute("PRAGMA query_only = ON")
        now[0] += 2 * HOUR  # the time of use is due to be renewed
        assert await cache.get(key("a")) == result()
        with pytest.raises(Unavailable, match="action cache"):
            await cache.put(key("b"), result())
        cache._table.database.execute("PRAGMA query_only = OFF")


# Several processes


def shared(path: Path, role: str, max_entries: int = 1000) -> DiskActionCache:
    return DiskActionCache(
        path / "results.sqlite3",
        max_entries=max_entries,
        max_bytes=1 << 30,
        shared=role == "owner",
        guest=role == "guest",
    )


async def test_guests_go_on_while_the_owner_starts_again_and_it_counts_what_they_wrote(tmp_path: Path) -> None:
    async with shared(tmp_path, "owner") as owner:
        guest = await shared(tmp_path, "guest").__aenter__()
        await owner.put(key("a"), result())
    await guest.put(key("b"), result())
    async with shared(tmp_path, "owner") as owner:
        assert len(owner) == 2
        await guest.put(key("c"), result())
        assert len(owner) == 3
        assert await known(owner, "abc") == await known(guest, "abc") == "abc"
        await guest.__aexit__()


async def test_a_file_that_served_one_process_alone_is_shared_with_what_it_holds(tmp_path: Path) -> None:
    async with opened(tmp_path) as cache:
        await cache.put(key("a"), result())
    async with shared(tmp_path, "owner", max_entries=2) as owner, shared(tmp_path, "guest", max_entries=2) as guest:
        await guest.put(key("b"), result())
        await guest.put(key("c"), result())
        assert await known(owner, "abc") == "bc"
        assert len(guest) == 2
    async with opened(tmp_path) as cache:
        assert len(cache) == 2


async def test_a_guest_without_an_owner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DirectoryUnusable, match="action cache"):
        await shared(tmp_path, "guest").__aenter__()


async def test_guests_follow_the_owner_to_a_fresh_file(tmp_path: Path) -> None:
    now = [1000.0]
    async with shared(tmp_path, "owner") as owner:
        guest = DiskActionCache(
            tmp_path / "results.sqlite3", max_entries=10, max_bytes=1 << 30, guest=True, clock=lambda: now[0]
        )
        async with guest:
            await guest.put(key("a"), result())
            owner._table._start_anew(sqlite3.DatabaseError("as if it were damaged"))
            await owner.put(key("b"), result())
            now[0] += 10.0
            assert await known(guest, "ab") == "b"


WRITER = """
import asyncio, sys
from pathlib import Path
from cas.action_cache import ActionKey
from cas.action_cache_disk import DiskActionCache
from cas.digest import Digest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

async def main(path, name):
    async with DiskActionCache(path, max_entries=50, max_bytes=1 << 30, guest=True) as cache:
        for number in range(300):
            await cache.put(ActionKey("", Digest.of(f"{name} {number}".encode())), re_pb2.ActionResult(stdout_raw=b"x"))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


async def test_processes_that_write_at_once_keep_the_bound_together(tmp_path: Path) -> None:
    async with shared(tmp_path, "owner", max_entries=50) as owner:
        path = str(tmp_path / "results.sqlite3")
        writers = [await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, path, name) for name in "xyz"]
        assert [await writer.wait() for writer in writers] == [0, 0, 0]
        assert len(owner) == 50
        counted = sqlite3.connect(path).execute("SELECT count(*) FROM results").fetchone()
        assert counted == (50,)
