"""Did the kernel kill something for want of memory while an action ran?

A compiler driver whose compiler was killed exits with 1, and a shell with 137: the action's own exit status does not tell.
The kernel counts its kills: for the container in cgroup v2's memory.events (`oom_kill`), for the machine in /proc/vmstat.
"""

from __future__ import annotations

from pathlib import Path

_COUNTERS = (Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat"))


class OomWatch:
    """Remembers the counter. One for each agent."""

    def __init__(self, counters: tuple[Path, ...] = _COUNTERS) -> None:
        self._counters = counters
        self._kills = self._read()

    def look(self) -> bool:
        """Whether there were kills since the last look. Asked only after an action failed, so that the others do not pay
        for it; a kill that happened long ago may cost one failing action a needless second try, never a wrong result."""
        kills = self._read()
        changed, self._kills = kills > self._kills, kills
        return changed

    def _read(self) -> int:
        for path in self._counters:
            try:
                for line in path.read_text().splitlines():
                    name, _, count = line.partition(" ")
                    if name == "oom_kill":
                        return int(count)
            except (OSError, ValueError):
                continue
        return 0
