"""Running one command: start it, wait for it or for its time to be up, and leave no process behind.

The command leads a session of its own, reads nothing (/dev/null), and writes into two captured streams. Its end is seen
through a pidfd on the event loop: no thread waits for it and no signal handler is needed. The first process is waited for
last, when everything that it started is dead: until then its number cannot be given to another process.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from cas.cancellation import to_the_end
from cas.errors import FailedPrecondition, MalformedRequest
from rexec.worker.bound import Bound
from rexec.worker.command import Invocation
from rexec.worker.control_groups import ActionGroups, NoControlGroups
from rexec.worker.excess import Excess, Taken, over_share
from rexec.worker.isolation import Confined
from rexec.worker.limits import NO_LIMITS, ActionLimits
from rexec.worker.memory_watch import MemoryWatch
from rexec.worker.process_table import ticks_now
from rexec.worker.processes import ActionProcesses, Processes
from rexec.worker.spawn_gate import GATE, SpawnGate
from rexec.worker.streams import CapturedStream
from rexec.worker.usage import Usage

_T = TypeVar("_T")

_GONE_SECONDS = 1.0

_DEADLY = frozenset(signal.Signals) - {
    signal.SIGCHLD, signal.SIGCONT, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGURG,
    signal.SIGWINCH,
}  # fmt: skip
"""Signals that a process dies of that does not handle them (signal(7))."""

_LAST_BYTES = 4096
"""Of the standard error, shown to the isolation: enough for what a program that could not start says."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a command ended."""

    exit_code: int
    """As a shell reports it: 128 + n after signal n."""
    signal_number: int
    """The signal that the first process died of, 0 if it exited."""
    told_signal: int
    """The same of a command that the first process only waited for: what the exit code it gave says, for people. That a command
    itself exited with 128 + n looks the same."""
    timed_out: bool
    wall_seconds: float
    usage: Usage
    excess: Excess | None = None
    """Why this agent killed it, if it did so for what it took."""

    @property
    def message(self) -> str:
        """For the user, if there is more to say than the exit code."""
        if self.excess is not None:
            return self.excess.message
        if self.exit_code == 128 + signal.SIGXFSZ:  # of the first process, or a shell tells of another
            return "killed by signal 25 (SIGXFSZ): a file would have become larger than [worker] file_max_bytes"
        number = self.signal_number or self.told_signal
        if not number:
            return ""
        try:
            name = f" ({signal.Signals(number).name})"
        except ValueError:
            name = ""
        return f"killed by signal {number}{name}"


class Runner:
    """Starts commands of all slots."""

    def __init__(
        self,
        processes: Processes,
        kill_grace_seconds: float,
        note_session: Callable[[int, int], None] = lambda _session, _ticks: None,
        gate: SpawnGate = GATE,
        memory: MemoryWatch | None = None,
        limits: ActionLimits = NO_LIMITS,
        groups: ActionGroups | None = None,
        keeps_to_share: bool = False,
    ) -> None:
        """`keeps_to_share` says whether the kernel, where there are groups, holds an action to its share of the memory."""
        self._memory = memory or MemoryWatch()
        self._groups = groups or NoControlGroups()
        self._keeps_to_share = keeps_to_share
        self._limits = limits
        self._processes = processes
        self._kill_grace_seconds = kill_grace_seconds
        self._note_session = note_session
        self._gate = gate

    async def run(
        self,
        confined: Confined,
        room: str,
        stdout: CapturedStream,
        stderr: CapturedStream,
        timeout_seconds: float,
        memory_bytes: int = 0,
    ) -> Exit:
        """Run to the end, or for `timeout_seconds`; the time before the start and after the end does not count. `memory_bytes`
        is its share of the worker's memory, 0 if that is not known.

        Afterwards no process is left and both streams are complete, also if the caller is cancelled. Raises MalformedRequest
        or FailedPrecondition if the command cannot be started, what the isolation makes of its end, Unkillable if a process
        does not end, OSError if there is no space for what it printed.
        """
        loop = asyncio.get_running_loop()
        start_ticks = ticks_now()
        bound = Bound(self._groups, memory_bytes if self._keeps_to_share else 0)
        try:
            process, action = self._spawn(confined, room, stdout.write_fd, stderr.write_fd, start_ticks)
        except BaseException:
            stdout.close()
            stderr.close()
            raise
        started = loop.time()
        pidfd = -1
        exited: asyncio.Future[None] = loop.create_future()
        exceeded: asyncio.Future[Excess] = loop.create_future()
        timed_out = False
        try:
            pidfd = os.pidfd_open(process.pid)
            loop.add_reader(pidfd, _set, loop, pidfd, exited)
            self._note_session(process.pid, start_ticks)
            self._limits.apply(process.pid, with_descendants=confined.is_watched)
            self._memory.began(process.pid, memory_bytes, exceeded.set_result)
            bound.began(process.pid)
            stdout.started(loop)
            stderr.started(loop)
            timed_out = not await _within(timeout_seconds, exited, exceeded)
            if timed_out:
                action.signal(signal.SIGTERM, spared=process.pid if confined.is_watched else 0)
                await _within(self._kill_grace_seconds, exited, exceeded)
        finally:
            ended = loop.time()
            seen_memory_bytes = self._memory.ended(process.pid)
            try:
                ending = self._end(process, action, exited.done(), confined.is_watched, bound)
                wait_status, usage = await to_the_end(ending)
            finally:
                was_too_much = bound.left()
                if pidfd >= 0:
                    loop.remove_reader(pidfd)
                    os.close(pidfd)
                failures = [_finished(stdout), _finished(stderr)]
        for failure in failures:
            if failure is not None:
                raise failure
        code = os.waitstatus_to_exitcode(wait_status)
        # One that has ended by itself just before is not what took too much.
        excess = exceeded.result() if exceeded.done() and code == -signal.SIGKILL and not timed_out else None
        if was_too_much and code and not timed_out and excess is None:
            # The kernel has been faster than the watch. It kills at the share, so that much was taken.
            excess = over_share(Taken(max(seen_memory_bytes, memory_bytes), memory_bytes))
        if not timed_out and excess is None:
            confined.judge(code, stderr.read_at(max(0, stderr.size_bytes - _LAST_BYTES), _LAST_BYTES))
        return Exit(
            exit_code=128 - code if code < 0 else code,
            signal_number=-code if code < 0 else 0,
            told_signal=code - 128 if confined.is_watched and code - 128 in _DEADLY else 0,
            timed_out=timed_out,
            wall_seconds=ended - started,
            usage=Usage.of(usage, seen_memory_bytes, action.orphans_usage),
            excess=excess,
        )

    def _spawn(
        self, confined: Confined, room: str, stdout: int, stderr: int, start_ticks: int
    ) -> tuple[subprocess.Popen[bytes], ActionProcesses]:
        invocation = confined.invocation
        arguments = invocation.arguments
        program = invocation.program
        while True:
            start = partial(_popen, arguments, program, invocation, stdout, stderr, confined.pass_fds)
            try:
                with self._gate.spawning, self._limits.taken_on():
                    process = confined.spawn(start)
                    # Within the gate, so that nobody who looks for processes finds one that is nobody's.
                    leader = confined.inner_leader
                    return process, self._processes.started(process.pid, room, start_ticks, leader)
            except OSError as failure:
                if failure.errno == errno.ENOEXEC and program != "/bin/sh":
                    # A script without "#!": every shell, and execvp(3), runs it with sh.
                    arguments, program = ["/bin/sh", program, *arguments[1:]], "/bin/sh"
                    continue
                raise _start_failure(failure, invocation) from failure

    async def _end(
        self,
        process: subprocess.Popen[bytes],
        action: ActionProcesses,
        has_exited: bool,
        is_watched: bool,
        bound: Bound,
    ) -> tuple[int, resource.struct_rusage]:
        """Kill what is left of the action and wait for the first process: its wait status and resource usage."""
        process.returncode = 0  # this object never waits; without a code it would complain about that
        await bound.ended()
        if has_exited and is_watched:
            # What the first process watched ends just now: to wait for that is cheaper than to search for it.
            for pid in self._processes.dying(action):
                await _gone(pid)
        if not has_exited or self._processes.left(action):
            await asyncio.to_thread(self._processes.kill, action)
        _, status, usage = os.wait4(process.pid, 0)  # noqa: ASYNC222 - it has ended, so this does not block
        self._processes.ended(action)
        return status, usage


def _popen(
    arguments: Sequence[str], program: str, invocation: Invocation, stdout: int, stderr: int, pass_fds: Sequence[int]
) -> subprocess.Popen[bytes]:
    # Popen with these options goes through vfork: its cost does not grow with the agent's memory.
    return subprocess.Popen(
        arguments,
        executable=program,
        cwd=invocation.directory,
        env=invocation.environment,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        close_fds=True,
        pass_fds=pass_fds,
        start_new_session=True,
    )


async def _within(seconds: float, exited: asyncio.Future[None], exceeded: asyncio.Future[Excess]) -> bool:
    """Wait for either; False if none came within `seconds`."""
    either: list[asyncio.Future[Any]] = [exited, exceeded]
    done, _ = await asyncio.wait(either, timeout=max(0.0, seconds), return_when=asyncio.FIRST_COMPLETED)
    return bool(done)


async def _gone(pid: int) -> None:
    """Wait until a child of this process, which was killed, has ended; not for ever, because it may be stuck."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return  # while another was waited for somebody took note of its end
    loop.add_reader(pidfd, _set, loop, pidfd, ended)
    try:
        await asyncio.wait([ended], timeout=_GONE_SECONDS)
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def _set(loop: asyncio.AbstractEventLoop, pidfd: int, event: asyncio.Future[None]) -> None:
    loop.remove_reader(pidfd)  # it stays readable, so this would be called again and again, whatever else is waited for
    if not event.done():
        event.set_result(None)


def _finished(stream: CapturedStream) -> OSError | None:
    try:
        stream.finish()
    except OSError as failure:
        return failure
    return None


def _start_failure(failure: OSError, invocation: Invocation) -> Exception:
    """The status of a command that could not be started."""
    if failure.errno == errno.E2BIG:
        return MalformedRequest("the arguments and the environment are longer than the system allows")
    if failure.errno in _OUR_LIMITS:
        return failure
    return FailedPrecondition(f"cannot start {invocation.arguments[0][:200]!r}: {os.strerror(failure.errno or 0)}")


_OUR_LIMITS = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""Not the action's fault: the machine has no room for another process."""
