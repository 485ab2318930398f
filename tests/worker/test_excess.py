"""Who is killed for taking too much, and what is said of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rexec.worker.excess import Excess, Taken, out_of_memory, over_share, readable, victim
from rexec.worker.memory_gauge import MemoryGauge
from rexec.worker.memory_watch import MemoryWatch, WatchLimits, memory_bytes_of, proportional_bytes_of
from rexec.worker.process_table import tree_of

GIB, MIB = 1 << 30, 1 << 20


def test_it_is_said_how_much_was_taken_and_how_much_there_was() -> None:
    excess = over_share(Taken(int(3.9 * GIB), 2 * GIB))
    assert excess.message == "killed: 3.9 GiB, slot 2 GiB"
    assert excess.memory_bytes == int(3.9 * GIB)
    assert [readable(size) for size in (512, 600 << 10, 512 * MIB, 2 * GIB, 10 * GIB)] == [
        "0 KiB", "600 KiB", "512 MiB", "2 GiB", "10 GiB",
    ]  # fmt: skip


def test_the_one_furthest_above_its_share_goes_first_however_large_others_are() -> None:
    running = {"large": Taken(8 * GIB, 8 * GIB), "above": Taken(3 * GIB, 2 * GIB), "little": Taken(GIB, GIB - 1)}
    assert victim(running) == "above"


def test_where_nobody_is_above_his_share_it_is_the_largest_and_not_its_fault() -> None:
    running = {"large": Taken(8 * GIB, 8 * GIB), "small": Taken(GIB, 2 * GIB), "free": Taken(2 * GIB, 0)}
    assert victim(running) == "large"
    excess = out_of_memory(running["large"], 100 * MIB)
    assert not excess.is_own_fault
    assert not excess.memory_bytes
    assert excess.message.startswith("killed: 8 GiB, the most of all actions")
    assert "100 MiB of memory left" in excess.message


def test_nobody_is_killed_where_nothing_runs_or_takes_anything() -> None:
    assert victim({}) is None
    assert victim({"idle": Taken(0, GIB)}) is None


class Held:
    """A process that holds so much memory, shared with forked children if there are any, until it is closed."""

    def __init__(self, mebibytes: int, children: int = 0) -> None:
        self.program = (
            "import os, sys, time\n"
            f"x = b'x' * ({mebibytes} << 20)\n"
            f"pids = [os.fork() or time.sleep(1000) for _ in range({children})]\n"
            "print('ready', flush=True)\n"
            "sys.stdin.read()\n"
            "for pid in pids: os.kill(pid, 9)\n"
        )

    async def __aenter__(self) -> int:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", self.program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"ready\n"
        return self.process.pid

    async def __aexit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


def killed_by(watch: MemoryWatch, pid: int, share_bytes: int) -> list[Excess]:
    said: list[Excess] = []
    watch.began(pid, share_bytes, said.append)
    watch.look()
    watch.look()
    watch.ended(pid)
    return said


async def test_an_action_above_its_share_is_killed_once() -> None:
    watch = MemoryWatch(limits=WatchLimits(keeps_to_share=True))
    async with Held(200) as pid:
        (said,) = killed_by(watch, pid, 100 * MIB)
        assert 200 * MIB < said.memory_bytes < 300 * MIB
        assert killed_by(watch, pid, 300 * MIB) == []
        assert killed_by(watch, pid, 0) == []


async def test_what_forked_children_share_is_counted_once() -> None:
    watch = MemoryWatch(limits=WatchLimits(keeps_to_share=True))
    async with Held(100, children=5) as pid:
        pids = tree_of(pid)
        assert len(pids) == 6
        assert memory_bytes_of(pids) > 600 * MIB
        assert 100 * MIB < proportional_bytes_of(pids) < 200 * MIB
        assert killed_by(watch, pid, 250 * MIB) == []


async def test_above_its_share_is_no_harm_as_long_as_there_is_memory() -> None:
    left = [GIB]
    watch = MemoryWatch(limits=WatchLimits(least_available_bytes=256 * MIB), available_bytes=lambda: left[0])
    async with Held(200) as large, Held(100) as above:
        said: dict[str, Excess] = {}

        def kill(name: str) -> Callable[[Excess], None]:
            return lambda excess: said.update({name: excess})

        watch.began(large, 300 * MIB, kill("large"))
        watch.began(above, 50 * MIB, kill("above"))
        watch.look()
        assert said == {}
        left[0] = 255 * MIB
        watch.look()
        assert list(said) == ["above"]
        assert said["above"].is_own_fault
        watch.look()
        assert list(said) == ["above"], "what was killed has not given its memory back yet"
        watch.ended(above)
        watch.look()
        assert list(said) == ["above", "large"]
        assert not said["large"].is_own_fault
        watch.ended(large)


async def test_processes_are_counted_with_those_left_to_the_agent() -> None:
    async with Held(1, children=3) as pid, Held(1) as orphan:
        for most, killed in ((3, True), (4, True), (5, False)):
            watch = MemoryWatch(limits=WatchLimits(max_processes=most), orphans=lambda: {pid: [orphan]})
            said = killed_by(watch, pid, 0)
            assert bool(said) == killed
            assert all(f"more than {most} processes" in excess.message for excess in said)


async def test_a_process_that_is_gone_has_no_share_of_anything() -> None:
    async with Held(1) as pid:
        pass
    assert proportional_bytes_of([pid]) == 0


@pytest.mark.parametrize(
    ("line", "group", "files", "left"),
    [
        (
            "0::/pod", "sys/fs/cgroup/pod",
            {"memory.max": "1000000", "memory.current": "900000", "memory.stat": "anon 5\ninactive_file 300000"},
            400_000,
        ),
        (
            "4:memory:/pod", "sys/fs/cgroup/memory/pod",
            {"memory.limit_in_bytes": "1000000", "memory.usage_in_bytes": "900000",
             "memory.stat": "inactive_file 1\ntotal_inactive_file 300000"},
            400_000,
        ),
        ("0::/pod", "sys/fs/cgroup/pod", {"memory.max": "max", "memory.current": "900000"}, 5_000_000 * 1024),
        ("0::/pod", "sys/fs/cgroup/pod", {"memory.max": "1000", "memory.current": "2000"}, 1),
    ],
    ids=["version 2", "version 1", "unbounded", "overdrawn"],
)  # fmt: skip
def test_the_memory_left_is_that_of_the_container(
    tmp_path: Path, line: str, group: str, files: dict[str, str], left: int
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{line}\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 5000000 kB\n")
    (tmp_path / group).mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / group / name).write_text(text + "\n")
    assert MemoryGauge(str(tmp_path)).available_bytes() == left


def test_memory_that_the_kernel_does_not_tell_of_is_unknown(tmp_path: Path) -> None:
    assert MemoryGauge(str(tmp_path)).available_bytes() == 0
