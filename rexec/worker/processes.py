"""Nothing that an action started outlives it.

Each action is a session of its own (setsid), so most of its processes are found by their session and killed by their group.
A process may leave the session, and then its parent may end. The agent is therefore the subreaper of all that it starts
(prctl PR_SET_CHILD_SUBREAPER): such an orphan becomes a child of the agent instead of vanishing under init. So after an
action one look at the agent's own children tells whether anything is left, and only then all of /proc is searched.

Several actions run at once. An orphan belongs to the action

- whose session it is in, or
- in whose directory it works, or whose TMPDIR it has in its environment, or
- of whose process it is a descendant.

One that has shed all of these belongs to any action that was running when it started; it is killed when the last of them
ends. Killing is repeated until nothing is found: a process that forks while it is being looked for is found the next time,
and groups are killed at once, which a fork bomb cannot outrun.

An agent that was killed with SIGKILL could not do this. It leaves a list of its sessions in its work directory, and the
next agent there ends what it finds of them before it does anything else.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from rexec.worker.process_table import ProcessStat, all_processes, children_of_this_process, lies_in, stat_of, tree_of
from rexec.worker.spawn_gate import GATE, SpawnGate

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

KILL_SECONDS: Final = 10.0
"""How long killed processes may take to disappear. Longer means stuck in the kernel, on a dead network disk for instance."""


class Unkillable(Exception):
    """Processes that are still there long after SIGKILL; their directory must not be used again."""


def _prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {argument}): {os.strerror(code)}")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process a signal when the thread that started it ends (prctl PR_SET_PDEATHSIG)."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


@dataclass(eq=False, slots=True)
class ActionProcesses:
    """The processes of one action, known by the first of them."""

    pid: int
    """The first process, which leads the session. It is not waited for before all others are dead, so the number stays its
    own and that of its session."""
    directory: str
    """The action's directory; input root and TMPDIR are in it."""
    start_ticks: int
    inner_leader: Callable[[], int] = lambda: 0
    """Who leads a second session that is the action's, 0 if nobody does (see `isolation.Confined`)."""
    orphans_usage: list[resource.struct_rusage] = field(default_factory=list)
    """Of its orphans that have been waited for here, and of what they waited for themselves."""

    def signal(self, number: int, *, spared: int = 0) -> None:
        """Signal all processes that are still in the first one's group, but for the one with the number `spared`; then those in
        the inner leader's group as well."""
        if not spared:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)
            return
        groups = {self.pid, self.inner_leader()}
        for pid in tree_of(self.pid):
            # A descendant that has ended in between was nobody's to wait for but its own parent's.
            with suppress(ProcessLookupError, PermissionError):
                if pid != spared and stat_of(pid).group in groups:
                    os.kill(pid, number)


class Processes:
    """All actions' processes in this agent."""

    def __init__(self, gate: SpawnGate = GATE) -> None:
        self._gate = gate
        self._running: dict[int, ActionProcesses] = {}
        # Children that were here before, which are nobody's action.
        self._spared = set(children_of_this_process() or ())

    def adopt_orphans(self) -> None:
        """Become the parent of what actions leave behind. It holds for the whole process."""
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def started(
        self, pid: int, directory: str, start_ticks: int, inner_leader: Callable[[], int] = lambda: 0
    ) -> ActionProcesses:
        """An action's first process runs since `start_ticks` (taken before it was started)."""
        action = self._running[pid] = ActionProcesses(pid, directory, start_ticks, inner_leader)
        return action

    def orphans(self) -> dict[int, list[int]]:
        """Those that running actions have left to this process, by the first process of their action. Not among them: one that
        has shed all that tells whose it is, and what orphans have started. Also waits for those that have ended."""
        found: dict[int, list[int]] = {}
        for pid in children_of_this_process() or ():
            if pid in self._running or pid in self._spared or self._reaped(pid):
                continue
            try:
                owner = self._owner_of(stat_of(pid))
            except ProcessLookupError:
                continue
            if owner is not None:
                found.setdefault(owner.pid, []).append(pid)
        return found

    def dying(self, action: ActionProcesses) -> list[int]:
        """Kill what is still in the first process's group; the children of this process in its session, or in the inner one, that
        are left then."""
        action.signal(signal.SIGKILL)
        found = []
        sessions = (action.pid, action.inner_leader())
        for pid in children_of_this_process() or ():
            with suppress(ProcessLookupError):
                if pid not in self._running and stat_of(pid).session in sessions:
                    found.append(pid)
        return found

    def left(self, action: ActionProcesses) -> bool:
        """Whether there may be processes beside the first one, which has ended. Cheap; also waits for orphans that have
        ended by themselves."""
        action.signal(signal.SIGKILL)
        children = children_of_this_process()
        if children is None:
            return True
        found = False
        for pid in children:
            if pid not in self._running and pid not in self._spared and not self._reaped(pid):
                found = True
        return found

    def kill(self, action: ActionProcesses) -> None:
        """Kill everything of the action, and return when it is gone. Blocks; raises Unkillable if it does not go.

        The first process is killed too, but not waited for.
        """

        def find() -> list[ProcessStat]:
            table = all_processes()
            # One that was just being started is in the table and belongs to no action yet: wait until it does.
            self._gate.settle()
            found = []
            for process in table.values():
                if process.is_dead:
                    if (
                        process.parent == os.getpid()
                        and process.pid not in self._running
                        and process.pid not in self._spared
                    ):
                        self._reaped(process.pid)
                elif self._belongs(process, action, table):
                    found.append(process)
            return found

        action.signal(signal.SIGKILL)
        _kill_all(find)

    def ended(self, action: ActionProcesses) -> None:
        """The first process was waited for: its number means nothing any more."""
        self._running.pop(action.pid, None)

    def _reaped(self, pid: int) -> bool:
        """Take note of the end of a child that nobody waits for; False if it is still alive."""
        try:
            session = stat_of(pid).session
            ended, _, usage = os.wait4(pid, os.WNOHANG)
        except (ProcessLookupError, ChildProcessError):
            return True
        owner = self._of_session(session) if ended else None
        if owner is not None:
            owner.orphans_usage.append(usage)
        return ended == pid

    def _of_session(self, session: int) -> ActionProcesses | None:
        owner = self._running.get(session)
        if owner is not None:
            return owner
        return next((action for action in list(self._running.values()) if action.inner_leader() == session), None)

    def _belongs(self, process: ProcessStat, action: ActionProcesses, table: dict[int, ProcessStat]) -> bool:
        me = os.getpid()
        # Up to the ancestor that is a child of this agent; what has none is not of its making.
        line = [process]
        while line[-1].parent != me:
            parent = table.get(line[-1].parent)
            if parent is None or len(line) > len(table):
                return False
            line.append(parent)
        if any(ancestor.pid in self._spared for ancestor in line):
            return False
        for ancestor in line:
            owner = self._owner_of(ancestor)
            if owner is not None:
                return owner is action
        others = [other for other in list(self._running.values()) if other is not action]
        return all(line[-1].start_ticks < other.start_ticks for other in others)

    def _owner_of(self, process: ProcessStat) -> ActionProcesses | None:
        owner = self._of_session(process.session)
        if owner is not None:
            return owner
        for action in list(self._running.values()):
            if lies_in(process.pid, action.directory):
                return action
        return None


def kill_left_behind(directory: str, sessions: Iterable[tuple[int, int]]) -> int:
    """End the processes of an agent that was killed; returns how many there were. Blocks; raises Unkillable.

    They are those that work inside `directory`, and those in one of `sessions`: pairs of a session's number and the ticks
    since which it existed. As long as a session has a member its number is not given to another process, so a process
    that is younger than the session and carries its number is a member.
    """
    since = dict(sessions)
    seen: set[int] = set()
    me = os.getpid()

    def find() -> list[ProcessStat]:
        found = []
        for process in all_processes().values():
            if process.pid == me or process.is_dead:
                continue
            started = since.get(process.session)
            if (started is not None and process.start_ticks >= started) or lies_in(process.pid, directory):
                found.append(process)
                seen.add(process.pid)
        return found

    _kill_all(find)
    return len(seen)


def _kill_all(find: Callable[[], list[ProcessStat]]) -> None:
    """Kill the living processes that `find` gives until it gives none."""
    deadline = time.monotonic() + KILL_SECONDS
    own_session = os.getsid(0)
    while True:
        alive = find()
        if not alive:
            return
        watched = []
        # A whole group dies in one step: a process that is just forking has no child that escapes.
        for group in {process.group for process in alive if process.session != own_session}:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        for process in alive:
            with suppress(ProcessLookupError, PermissionError):
                watched.append(os.pidfd_open(process.pid))
                os.kill(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            _close(watched)
            names = ", ".join(str(process.pid) for process in alive[:10])
            raise Unkillable(f"processes {names} do not end {KILL_SECONDS:.0f} s after SIGKILL")
        _wait(watched)


def _wait(watched: list[int]) -> None:
    """Wait until one of these processes has ended; the next search tells about the others."""
    poll = select.poll()
    for fd in watched:
        poll.register(fd, select.POLLIN)
    poll.poll(100)
    _close(watched)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
