"""How much memory is left before the kernel kills: on the machine, and in each control group that bounds this process.

What the page cache holds and can drop counts as left: on the machine the kernel says so itself (proc(5), MemAvailable); in a
group it is what is used less the inactive file pages, as Kubernetes counts as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from rexec.worker.capacity import groups_of_this_process
from rexec.worker.machine import available_memory_bytes

_FILES: Final = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage, and the name in memory.stat; of control groups version 2 and 1."""

_NO_LIMIT_BYTES: Final = 1 << 62


class MemoryGauge:
    """Finds the bounding groups once; each reading then takes some tens of microseconds."""

    def __init__(self, root: str = "/") -> None:
        self._meminfo = f"{root.rstrip('/')}/proc/meminfo"
        self._groups: list[tuple[int, Path, Path, str]] = []
        for group in dict.fromkeys(groups_of_this_process(root)):
            for limit, usage, inactive in _FILES:
                bound = _number(group / limit)
                if 0 < bound < _NO_LIMIT_BYTES and (group / usage).exists():
                    self._groups.append((bound, group / usage, group / "memory.stat", inactive))

    def available_bytes(self) -> int:
        """What is left now; 0 if the kernel does not say."""
        left = [size for size in [available_memory_bytes(self._meminfo)] if size]
        for bound, usage, stat, inactive in self._groups:
            used = _number(usage)
            # Not 0, which would mean that nothing is known.
            left.append(max(1, bound - max(0, used - _in_stat(stat, inactive))))
        return min(left, default=0)


def _number(path: Path) -> int:
    """0 if there is none."""
    try:
        text = path.read_text().strip()
    except (OSError, ValueError):
        return 0
    return int(text) if text.isdigit() else 0


def _in_stat(path: Path, wanted: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return 0
    for line in lines:
        name, _, size = line.partition(" ")
        if name == wanted and size.isdigit():
            return int(size)
    return 0
