"""What a worker has: the machine's cores and memory, or less in a control group of either version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from rexec.worker import capacity as capacity_module
from rexec.worker.capacity import Capacity, capacity
from rexec.worker.settings import WorkerSettings

GIB = 1 << 30


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rexec.worker.capacity.os.sched_getaffinity", lambda _pid: set(range(8)))


def machine(root: Path, files: Mapping[str, str]) -> str:
    for name, text in {"proc/meminfo": f"MemTotal: {16 * GIB // 1024} kB\nMemFree: 1 kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


CGROUP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Capacity(8000, 16 * GIB)),
        (
            # Version 2: the group above has the smaller limit of memory, its own that of the processor.
            {
                "proc/self/cgroup": "0::/pods/a\n",
                f"{CGROUP}/pods/cpu.max": "max 100000",
                f"{CGROUP}/pods/memory.max": str(2 * GIB),
                f"{CGROUP}/pods/a/cpu.max": "150000 100000",
                f"{CGROUP}/pods/a/memory.max": "max",
            },
            Capacity(1500, 2 * GIB),
        ),
        (
            # The container sees its own group as the root of the tree.
            {"proc/self/cgroup": "0::/\n", f"{CGROUP}/cpu.max": "50000 100000", f"{CGROUP}/memory.max": str(GIB)},
            Capacity(500, GIB),
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n",
                f"{CGROUP}/cpu/docker/1/cpu.cfs_quota_us": "300000\n",
                f"{CGROUP}/cpu/docker/1/cpu.cfs_period_us": "100000\n",
                f"{CGROUP}/memory/docker/1/memory.limit_in_bytes": str(3 * GIB),
                f"{CGROUP}/memory/memory.limit_in_bytes": "9223372036854771712",
            },
            Capacity(3000, 3 * GIB),
        ),
        (
            # Version 1 in a container: the path is the host's, the tree the container's.
            {
                "proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n",
                f"{CGROUP}/cpu/cpu.cfs_quota_us": "200000",
                f"{CGROUP}/cpu/cpu.cfs_period_us": "100000",
                f"{CGROUP}/memory/memory.limit_in_bytes": str(GIB),
            },
            Capacity(2000, GIB),
        ),
        (
            {
                "proc/self/cgroup": "0::/../x\nnonsense\n",
                f"{CGROUP}/cpu.max": "a b",
                f"{CGROUP}/memory.max": "-5",
                f"{CGROUP}/cpu.cfs_quota_us": "-1",
                f"{CGROUP}/cpu.cfs_period_us": "0",
            },
            Capacity(8000, 16 * GIB),
        ),
    ],
    ids=["no group", "v2", "v2 own root", "v1", "v1 own root", "nonsense"],
)
def test_the_smallest_limit_on_the_way_up_holds(tmp_path: Path, files: Mapping[str, str], expected: Capacity) -> None:
    assert capacity(machine(tmp_path, files)) == expected


def test_memory_that_nobody_tells_of_is_not_made_up(tmp_path: Path) -> None:
    assert capacity(str(tmp_path)) == Capacity(8000, 0)


@pytest.mark.parametrize(("millis", "cores"), [(1, 1), (1499, 1), (1500, 2), (8000, 8)])
def test_slots_are_the_nearest_number_of_cores(millis: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rexec.worker.settings.capacity", lambda: Capacity(millis, 0))
    assert WorkerSettings().slots == cores


def test_resources_are_found_out_less_a_reserve_and_configured_ones_replace_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rexec.worker.settings.capacity", lambda: Capacity(2000, 4 * GIB))
    assert WorkerSettings(memory_reserve_bytes=GIB).offered_resources() == {"cpu": 2000, "memory": 3 * GIB}
    assert WorkerSettings(memory_reserve_bytes=9 * GIB).offered_resources()["memory"] == 2 * GIB
    offered = WorkerSettings(resources={"memory": 7, "gpu": 1}).offered_resources()
    assert offered == {"cpu": 2000, "memory": 7, "gpu": 1}
    monkeypatch.setattr("rexec.worker.settings.capacity", lambda: Capacity(2000, 0))
    assert WorkerSettings().offered_resources() == {"cpu": 2000}


def test_this_machine_has_something() -> None:
    found = capacity_module.capacity()
    assert found.cpu_millis >= 1
    assert found.memory_bytes > 0
