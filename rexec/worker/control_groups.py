"""A control group of its own for each action (cgroups(7), version 2), where the agent may make some.

The kernel then bounds what the processes of an action take together (`memory.max`), at the moment they take it and wherever they
went, and ends them all at once (`memory.oom.group`, `cgroup.kill`). What an action may take and how it is told does not change;
the look at running actions (rexec/worker/memory_watch.py) goes on beside it, and is all there is where no group is delegated.

Delegated is a group that the agent may write to and that is nobody else's to manage: the root of a container's own view of the
groups, one that systemd has marked so (Delegate=), or one that was given to an ordinary user. A group with processes in it can
have no groups below that are bounded. So the agent moves into a group below first, and only if it is alone: other processes are
not its to move.

    <own>/agent       the agent
    <own>/action-7    an action, from soon after its start until all its processes are gone

An action is moved into its group (rexec/worker/bound.py) because it cannot be started there without code in the forked child.
What it took before counts for the agent's group. What a group counts includes files in the page cache, but the kernel drops
those before it kills.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

import structlog

from rexec.worker.process_table import tree_of

_log = structlog.get_logger()

_AGENT: Final = "agent"
_ACTION: Final = "action-"

_MAX_PASSES: Final = 10
"""Over the processes of an action while it is moved: what a process has started before it was moved itself is found next time."""

_DELEGATED: Final = ("user.delegate", "trusted.delegate")
"""Extended attributes with which systemd marks a group that it leaves alone."""


class NotDelegated(Exception):
    """There is no control group to make others in; the text says why."""


class GroupFiles:
    """The file system of the control groups."""

    def make(self, group: Path) -> None:
        """Raises OSError, FileExistsError if it is there."""
        group.mkdir()

    def remove(self, group: Path) -> None:
        """Raises OSError, EBUSY as long as it has processes."""
        group.rmdir()

    def read(self, path: Path) -> str:
        """Raises OSError."""
        return os.fsdecode(path.read_bytes())  # groups may have any names

    def write(self, path: Path, text: str) -> None:
        """Raises OSError; there are no files but the kernel's."""
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


class ActionGroup(Protocol):
    """What bounds one action."""

    def take(self, pid: int) -> None:
        """Bound the process and all its descendants. Blocks, for some tens of milliseconds at worst; never raises."""
        ...

    def kill(self) -> None:
        """Kill all that are in it, if there are any."""
        ...

    def end(self) -> bool:
        """The action is over: let the group go. Returns whether the kernel killed something in it for taking more than it may;
        a victim of the machine's want of memory is none of these."""
        ...


class ActionGroups(Protocol):
    """Those of one agent."""

    @property
    def are_there(self) -> bool:
        """Whether there are any at all."""
        ...

    def group(self, memory_bytes: int) -> ActionGroup:
        """For an action that may take so much; 0 is any amount."""
        ...

    def close(self) -> None:
        """Leave everything as it was found."""
        ...


class _NoGroup:
    def take(self, pid: int) -> None:
        pass

    def kill(self) -> None:
        pass

    def end(self) -> bool:
        return False


NO_GROUP: Final = _NoGroup()


class NoControlGroups:
    """Nothing is delegated, or it is switched off."""

    are_there = False

    def group(self, memory_bytes: int) -> ActionGroup:
        return NO_GROUP

    def close(self) -> None:
        pass


class ControlGroup:
    """One action's."""

    def __init__(self, path: Path, files: GroupFiles, owner: ControlGroups) -> None:
        self._path = path
        self._files = files
        self._owner = owner

    def take(self, pid: int) -> None:
        moved: set[int] = set()
        for _ in range(_MAX_PASSES):
            found = [process for process in tree_of(pid) if process not in moved]
            if not found:
                return
            for process in found:
                moved.add(process)
                try:
                    self._files.write(self._path / "cgroup.procs", str(process))
                except OSError as failure:
                    if failure.errno != errno.ESRCH:  # it has ended
                        _log.warning(
                            "an action is not in its control group", group=self._path.name, reason=str(failure)
                        )
                        return

    def kill(self) -> None:
        with suppress(OSError):  # before Linux 5.14 there is no such file: they are searched for, as ever
            if _figure(self._files.read(self._path / "cgroup.events"), "populated"):
                self._files.write(self._path / "cgroup.kill", "1")

    def end(self) -> bool:
        events = ""
        with suppress(OSError):
            events = self._files.read(self._path / "memory.events")
        self._owner.remove(self._path)
        # Any kill is an `oom_kill`; `oom` is counted only where a bound was reached.
        return _figure(events, "oom") > 0 and _figure(events, "oom_kill") > 0


class ControlGroups:
    """Groups below the one that the agent was started in. Made by `claim`."""

    are_there = True

    def __init__(self, own: Path, files: GroupFiles) -> None:
        self._own = own
        self._files = files
        self._numbers = itertools.count()
        self._lingering: set[Path] = set()

    def group(self, memory_bytes: int) -> ActionGroup:
        for path in list(self._lingering):
            self.remove(path)
        files = self._files
        while (path := self._own / f"{_ACTION}{next(self._numbers)}").exists():
            pass  # an agent that was killed has left it, with processes that do not end
        try:
            files.make(path)
            if memory_bytes:
                for name, value in (("memory.oom.group", "1"), ("memory.swap.max", "0")):
                    with suppress(FileNotFoundError):  # before Linux 4.19; without swap
                        files.write(path / name, value)
                files.write(path / "memory.max", str(memory_bytes))
        except OSError as failure:
            _log.warning("an action has no control group", group=path.name, reason=str(failure))
            self.remove(path)
            return NO_GROUP
        return ControlGroup(path, files, self)

    def remove(self, path: Path) -> None:
        """Now, or when the next one is made: the last process may be about to vanish."""
        try:
            self._files.remove(path)
        except FileNotFoundError:
            pass
        except OSError:
            self._lingering.add(path)
            return
        self._lingering.discard(path)

    def close(self) -> None:
        for path in list(self._lingering):
            self.remove(path)
        _leave(self._own, self._files)


def claim(root: str = "/", files: GroupFiles | None = None) -> ControlGroups:
    """Make the group of this process one that actions have groups in. `root` is where /proc and /sys are looked for.

    Raises NotDelegated; then all is as it was.
    """
    files = files or GroupFiles()
    own, is_top = _own_group(root, files)
    me = str(os.getpid())
    _require_delegated(own, files, me, is_top=is_top)
    agent = own / _AGENT
    try:
        for left in _groups_in(own, files, _ACTION):
            _end_left(left, files)
        with suppress(FileExistsError):
            files.make(agent)
        if others := files.read(agent / "cgroup.procs").split():
            raise NotDelegated(f"another agent is in {agent}: process {others[0]}")
        files.write(agent / "cgroup.procs", me)
        files.write(own / "cgroup.subtree_control", "+memory")
    except OSError as failure:
        _leave(own, files)
        raise NotDelegated(f"no groups can be made in {own}: {failure.strerror}") from failure
    return ControlGroups(own, files)


def claimed(is_wanted: bool, root: str = "/", files: GroupFiles | None = None) -> ActionGroups:
    """Groups for actions if there can be any; the log says which, and why."""
    if not is_wanted:
        return NoControlGroups()
    try:
        groups = claim(root, files)
    except NotDelegated as reason:
        said = os.fsencode(str(reason)).decode(errors="replace")
        _log.info("no control groups for actions, memory is watched by the agent alone", reason=said)
        return NoControlGroups()
    _log.info("each action has a control group")
    return groups


def _own_group(root: str, files: GroupFiles) -> tuple[Path, bool]:
    """The directory of the group that this process is in, and whether it is the topmost one that it sees."""
    try:
        lines = files.read(Path(root, "proc/self/cgroup")).split("\n")
    except OSError:
        raise NotDelegated("the kernel has no control groups") from None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if path is None:
        raise NotDelegated("the machine has control groups of version 1 only")
    inside = [part for part in path.split("/") if part]
    if ".." in inside:
        raise NotDelegated(f"the control group {path} is outside of what this process sees")
    for mounted in ("sys/fs/cgroup", "sys/fs/cgroup/unified"):
        found = Path(root, mounted, *inside)
        with suppress(OSError):
            if str(os.getpid()) in files.read(found / "cgroup.procs").split():
                return found, not inside
    raise NotDelegated(f"the control group {path} is not mounted in /sys/fs/cgroup")


def _require_delegated(own: Path, files: GroupFiles, me: str, *, is_top: bool) -> None:
    """Raises NotDelegated."""
    try:
        kind = files.read(own / "cgroup.type").strip()
    except OSError:
        raise NotDelegated("this process is in the root of all control groups") from None
    try:
        if kind != "domain":
            raise NotDelegated(f"the group {own} is of type {kind}, expected domain")
        if "memory" not in files.read(own / "cgroup.controllers").split():
            raise NotDelegated(f"the group {own} has no memory controller")
        names = ("", "cgroup.procs", "cgroup.subtree_control")
        if not all(os.access(own / name, os.W_OK) for name in names):
            raise NotDelegated(f"the group {own} is not writable")
        if not is_top and os.geteuid() == 0 and not _is_marked(own):
            raise NotDelegated(f"the group {own} is not delegated (systemd: Delegate=memory)")
        if others := [pid for pid in files.read(own / "cgroup.procs").split() if pid != me]:
            raise NotDelegated(f"there are other processes in the group {own}: {', '.join(others[:5])}")
    except OSError as failure:
        raise NotDelegated(f"the group {own} cannot be read: {failure.strerror}") from failure


def _is_marked(group: Path) -> bool:
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(group, name) == b"1":
                return True
    return False


def _groups_in(own: Path, files: GroupFiles, prefix: str) -> Iterator[Path]:
    for entry in sorted(own.iterdir()):
        if entry.name.startswith(prefix) and entry.is_dir():
            yield entry


def _end_left(group: Path, files: GroupFiles) -> None:
    """Of an agent that was killed."""
    with suppress(OSError):
        files.write(group / "cgroup.kill", "1")
    with suppress(OSError):  # if it lingers its number is not used again
        files.remove(group)


def _leave(own: Path, files: GroupFiles) -> None:
    """Back into the group of before, as far as it can be had."""
    with suppress(OSError):
        files.write(own / "cgroup.subtree_control", "-memory")
    with suppress(OSError):
        if str(os.getpid()) in files.read(own / _AGENT / "cgroup.procs").split():
            files.write(own / "cgroup.procs", str(os.getpid()))
    with suppress(OSError):
        files.remove(own / _AGENT)


def _figure(text: str, wanted: str) -> int:
    for line in text.splitlines():
        name, _, number = line.partition(" ")
        if name == wanted and number.isdigit():
            return int(number)
    return 0
