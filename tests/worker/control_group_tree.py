"""Control groups in a directory that behaves as the kernel's (cgroups(7), version 2), as far as a worker asks for it."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from contextlib import suppress
from pathlib import Path

from rexec.worker.control_groups import GroupFiles

_OF_EACH = {
    "cgroup.procs": "", "cgroup.type": "domain\n", "cgroup.subtree_control": "", "cgroup.events": "populated 0\n",
    "cgroup.kill": "",
}  # fmt: skip
_OF_MEMORY = {
    "memory.max": "max\n", "memory.oom.group": "0\n", "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\n",
}  # fmt: skip


class GroupTree(GroupFiles):
    """Below a root of its own, with /proc/self/cgroup."""

    def __init__(self, root: Path, path: str = "/", controllers: str = "cpu memory pids", swap: bool = True) -> None:
        self._one_at_a_time = threading.RLock()
        """The kernel does each of these in one step; the worker's thread moves processes while a test kills them."""
        self.root = str(root)
        self.own = root / "sys/fs/cgroup" / path.strip("/")
        self.has_swap = swap
        self.killed: list[int] = []
        self.limits: list[dict[str, str]] = []
        """What the groups were bounded to that are gone."""
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_bytes(os.fsencode(f"4:memory:/elsewhere\n0::{path}\n"))
        self.own.mkdir(parents=True)
        self._fill(self.own, controllers)
        self._set_processes(self.own, {os.getpid()})

    def make(self, group: Path) -> None:
        super().make(group)
        self._fill(group, (group.parent / "cgroup.subtree_control").read_text())

    def remove(self, group: Path) -> None:
        with self._one_at_a_time:
            self._remove(group)

    def _remove(self, group: Path) -> None:
        if self.processes(group):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        if group.exists():
            self.limits.append({path.name: path.read_text().strip() for path in group.iterdir() if path.is_file()})
            shutil.rmtree(group)
        else:
            raise FileNotFoundError(errno.ENOENT, "no such group")

    def write(self, path: Path, text: str) -> None:
        with self._one_at_a_time:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        group = path.parent
        match path.name:
            case "cgroup.procs":
                if (group / "cgroup.subtree_control").read_text():
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                for other in [self.own, *self.own.iterdir()]:
                    if other.is_dir():
                        self._set_processes(other, self.processes(other) - {int(text)})
                self._set_processes(group, self.processes(group) | {int(text)})
            case "cgroup.subtree_control":
                if self.processes(group) and text.startswith("+"):
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                path.write_text(text.removeprefix("+") if text.startswith("+") else "")
            case "cgroup.kill":
                for pid in self.processes(group):
                    self.killed.append(pid)
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._set_processes(group, set())
            case _:
                if not path.exists():
                    raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
                path.write_text(text)

    def read(self, path: Path) -> str:
        with self._one_at_a_time:
            if path.name in ("cgroup.procs", "cgroup.events"):
                alive = {pid for pid in self.processes(path.parent) if _is_alive(pid)}
                self._set_processes(path.parent, alive)
            return super().read(path)

    def processes(self, group: Path) -> set[int]:
        with self._one_at_a_time:
            found = {int(pid) for pid in (group / "cgroup.procs").read_text().split()} if group.exists() else set()
            # What a process starts is where that is. Only actions are followed: the agent is the test itself.
            return found | _descendants(found) if group.name.startswith("action-") else found

    def actions(self) -> list[Path]:
        """The groups of actions that are there now."""
        return sorted(self.own.glob("action-*"))

    def count(self, group: Path, **events: int) -> None:
        """Have the kernel's counters of the group at these."""
        (group / "memory.events").write_text("".join(f"{name} {number}\n" for name, number in events.items()))

    def _fill(self, group: Path, controllers: str) -> None:
        files = {**_OF_EACH, "cgroup.controllers": controllers}
        if "memory" in controllers.split():
            files |= _OF_MEMORY | ({"memory.swap.max": "max\n"} if self.has_swap else {})
        for name, text in files.items():
            (group / name).write_text(text)

    def _set_processes(self, group: Path, pids: set[int]) -> None:
        (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in sorted(pids)))
        (group / "cgroup.events").write_text(f"populated {int(bool(pids))}\nfrozen 0\n")


def _descendants(pids: set[int]) -> set[int]:
    found: set[int] = set()
    for pid in pids:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with suppress(OSError):
                found |= {int(child) for child in children.read_text().split()}
    return found | _descendants(found) if found else found


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
