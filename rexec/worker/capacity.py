"""How many cores and how much memory this worker may use: those of the machine, or what its control group leaves of them.

In a container the machine's figures are somebody else's. The limit is in the control group of the process or in any above it,
and the smallest holds (cgroups(7)). Version 2 has all in one tree (cpu.max, memory.max); version 1 has a tree for each
controller (cpu.cfs_quota_us over cpu.cfs_period_us, memory.limit_in_bytes). A container may see its own group as the root of the
tree, whatever /proc/self/cgroup says; so the root is looked at too, and a path that is not there says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MILLIS: Final = 1000
_NO_LIMIT_BYTES: Final = 1 << 62
"""Version 1 writes "none" as a number close to 2^63."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What there is for actions and the agent together."""

    cpu_millis: int
    """Thousandths of a core."""
    memory_bytes: int
    """0 if it cannot be found out."""

    @property
    def whole_cores(self) -> int:
        """The nearest number of cores, at least 1."""
        return max(1, (self.cpu_millis + _MILLIS // 2) // _MILLIS)


def capacity(root: str = "/") -> Capacity:
    """Of this process. `root` is where /proc and /sys are looked for."""
    cpu_limits = [len(os.sched_getaffinity(0)) * _MILLIS]
    memory_limits = [size for size in [_machine_memory_bytes(root)] if size]
    for group in groups_of_this_process(root):
        cpu_limits += _cpu_limit(group)
        memory_limits += _memory_limit(group)
    return Capacity(max(1, min(cpu_limits)), min(memory_limits, default=0))


def groups_of_this_process(root: str) -> Iterator[Path]:
    """The directories of the control groups that this process is in, and of those above them."""
    base = Path(root, "sys/fs/cgroup")
    for line in _text(Path(root, "proc/self/cgroup")).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            trees = [base, base / "unified"]
        elif {"cpu", "memory"} & set(controllers.split(",")):
            # One directory may serve several controllers: "cpu,cpuacct", with a symbolic link for each.
            trees = [base / controller for controller in controllers.split(",") if controller in ("cpu", "memory")]
        else:
            continue
        inside = [part for part in path.split("/") if part not in ("", "..")]
        for tree in trees:
            for depth in range(len(inside), -1, -1):
                yield tree.joinpath(*inside[:depth])


def _cpu_limit(group: Path) -> list[int]:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
    # "max" and -1 mean none.
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return []
    return [max(1, int(quota) * _MILLIS // int(period))]


def _memory_limit(group: Path) -> list[int]:
    for name in ("memory.max", "memory.limit_in_bytes"):
        limit = _text(group / name)
        if limit.isdigit() and 0 < int(limit) < _NO_LIMIT_BYTES:
            return [int(limit)]
    return []


def _machine_memory_bytes(root: str) -> int:
    for line in _text(Path(root, "proc/meminfo")).splitlines():
        name, _, rest = line.partition(":")
        size = rest.removesuffix("kB").strip()
        if name == "MemTotal" and size.isdigit():
            return int(size) * 1024
    return 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
