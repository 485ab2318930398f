"""`isolation = "landlock"`: an action reads its inputs and what is declared, and writes what is its own.

Nothing has to be installed and no privilege is needed. Restrictions belong to a thread and pass to what it starts, so each
action is started by a thread made for it: the thread gives up its rights, starts the command as any other thread would, and
ends. The command is a child of the agent like every other, and nothing runs between fork and exec that could not run
otherwise. A program that restricts itself and then executes the command would cost the start of a program more, and an
interpreter 10 ms; a process kept for forking would be the parent of the commands in the agent's place.

The order is: no new privileges (without which the kernel allows none of the rest), no capabilities, Landlock, the filter. The
filter is last, because with `audit` it stops opens until another thread has answered. For the same reason the command is not
started by vfork then, which would hold the interpreter's lock, and so that thread, until the exec.
"""

from __future__ import annotations

import _thread
import errno
import gc
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import structlog

from cas.errors import FailedPrecondition
from rexec.worker import landlock, seccomp
from rexec.worker.isolation import (
    ISOLATION_PROPERTY,
    CannotIsolate,
    Confinable,
    Confined,
    Start,
    plain_invocation,
)
from rexec.worker.landlock import DEVICE, OWN, READ, Landlock, Rule
from rexec.worker.landlock_settings import LandlockSettings
from rexec.worker.seccomp import Filter, Sockets
from rexec.worker.system_calls import Architecture, architecture, drop_capabilities, gain_no_privileges
from rexec.worker.undeclared_reads import UndeclaredReads, found_in, remark_on
from rexec.worker.verdict import WorkerFault
from rexec.worker.workspace import Room

_log = structlog.get_logger()
_T = TypeVar("_T")

LANDLOCK_PROPERTY: Final = "Landlock"
"""Platform property: each version from 1 to the kernel's, so that an action can ask for the least that it needs."""

DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
"""They keep nothing of what is written to them."""

_LAST_LOOK_SECONDS: Final = 1.0
_NEEDS: Final = 'isolation = "landlock" needs {}; use "bubblewrap" or "none"'


class LandlockIsolation:
    """One for each agent."""

    def __init__(
        self,
        settings: LandlockSettings,
        own_directories: Sequence[str],
        known: Callable[[], Architecture] = architecture,
        abi: Callable[[Landlock], int] = Landlock.abi,
    ) -> None:
        """`own_directories` are the worker's, of which an action sees nothing but its room."""
        self._settings = settings
        self._own_directories = [os.path.realpath(path) for path in own_directories]
        self._find_architecture = known
        self._find_abi = abi
        self._abi = 0

    @property
    def offered(self) -> Mapping[str, Sequence[str]]:
        return {ISOLATION_PROPERTY: ["landlock"], LANDLOCK_PROPERTY: [str(1 + older) for older in range(self._abi)]}

    def require(self) -> None:
        try:
            self._known = self._find_architecture()
        except LookupError as reason:
            raise CannotIsolate(_NEEDS.format(f"a processor that it knows: {reason}")) from None
        self._landlock = Landlock(self._known)
        try:
            abi = self._find_abi(self._landlock)
        except OSError as reason:
            needed = "a kernel with Landlock (Linux 5.13, and `landlock` in /sys/kernel/security/lsm)"
            raise CannotIsolate(_NEEDS.format(f"{needed}: {reason.strerror}")) from None
        sockets = self._settings.sockets
        if sockets is Sockets.NO_TCP and abi < 4:
            raise CannotIsolate(
                f'sockets = "no-tcp" needs Landlock 4 (Linux 6.7), this kernel has {abi}; use "none" or "unix"'
            )
        self._system = self._system_rules()
        tcp = sockets is not Sockets.ALL
        self._handled = landlock.handled_by(abi, tcp=tcp, reads=not self._settings.audit)
        self._abi = abi
        self._packed = landlock.packed(self._system, self._handled)
        self._filter = Filter(self._known, seccomp.program(self._known, sockets, notify=self._settings.audit))
        self._try_out()
        # Without sockets there is no TCP to be denied, whatever the version.
        gaps = [gap for since, gap in landlock.GAPS if abi < since and not (since == 4 and sockets in _OFFLINE)]
        _log.info(
            "actions are restricted", landlock=abi, sockets=sockets.value, audit=self._settings.audit, not_denied=gaps
        )

    def prepare(self) -> None:
        """All was made when it was tried out."""

    @contextmanager
    def confine(self, action: Confinable) -> Iterator[Confined]:
        attempts: list[UndeclaredReads] = []
        room = action.room

        def seen() -> tuple[list[str], int]:
            paths = dict.fromkeys(path for reads in attempts for path in reads.paths)
            return list(paths), sum(reads.more for reads in attempts)

        spawn = partial(self._spawn, room, attempts)
        try:
            yield Confined(
                plain_invocation(action),
                spawn=spawn,
                remark=lambda: remark_on(*seen()),
                findings=lambda: found_in(*seen()),
            )
        finally:
            for reads in attempts:
                reads.ended(_LAST_LOOK_SECONDS)
            if said := remark_on(*seen()):
                _log.warning("undeclared reads", room=room.path, reads=said)

    def _spawn(self, room: Room, attempts: list[UndeclaredReads], start: Start) -> subprocess.Popen[bytes]:
        own = [Rule(room.root, OWN), Rule(room.tmp, OWN)]
        reads: UndeclaredReads | None = None
        if self._settings.audit:
            reads = UndeclaredReads(self._known, [rule.path for rule in (*self._system, *own)])
            reads.start()
            attempts.append(reads)

        def restricted() -> subprocess.Popen[bytes]:
            listener = -1
            try:
                listener = self._restrict_this_thread([*landlock.packed(own, self._handled), *self._packed])
            except OSError as reason:
                raise WorkerFault(f"cannot restrict the action: {reason}") from reason
            finally:
                if reads is not None:
                    reads.listen(listener)
            try:
                return start() if reads is None else _without_vfork(start)
            except PermissionError as reason:
                # It was found and may be executed, or it would not have come to this.
                raise FailedPrecondition(
                    f"cannot start {str(reason.filename)[:200]!r}: it, or what it is interpreted by, is neither in the input "
                    "root nor in what [worker.landlock] of the worker declares"
                ) from reason

        return _in_a_thread(restricted)

    def _restrict_this_thread(self, rules: Sequence[tuple[bytes, int]]) -> int:
        """Returns the listener, -1 if there is none. Raises OSError."""
        gain_no_privileges()
        drop_capabilities(self._known)
        self._landlock.restrict_this_thread(self._abi, self._handled, rules)
        if self._settings.audit:
            return self._filter.put_on_this_thread_and_listen()
        self._filter.put_on_this_thread()
        return -1

    def _try_out(self) -> None:
        def fails_to_write() -> bool:
            gain_no_privileges()
            drop_capabilities(self._known)
            self._landlock.restrict_this_thread(self._abi, self._handled, self._packed)
            refusal = _refusal_of(_write_into_root)
            # The kernel looks at that first. There a process may write its own name, unless Landlock is in force.
            if refusal == errno.EROFS:
                refusal = _refusal_of(lambda: os.close(os.open("/proc/self/comm", os.O_WRONLY)))
            denied = refusal == errno.EACCES
            # Last: with `audit`, nobody would answer.
            listener = -1
            if self._settings.audit:
                listener = self._filter.put_on_this_thread_and_listen()
            else:
                self._filter.put_on_this_thread()
            if listener >= 0:
                os.close(listener)
            return denied

        try:
            denied = _in_a_thread(fails_to_write)
        except OSError as reason:
            raise CannotIsolate(_NEEDS.format(f"what was refused here: {reason.strerror}")) from reason
        if not denied:
            raise CannotIsolate(_NEEDS.format("Landlock to be in force, but it denied nothing"))

    def _system_rules(self) -> list[Rule]:
        """Raises CannotIsolate for a path that is missing, or through which actions would see each other."""
        settings = self._settings
        rules = [Rule(path, DEVICE) for path in DEVICES]
        for paths, access in ((settings.system_paths, READ), (settings.readable, READ), (settings.writable, OWN)):
            for path in paths:
                real = os.path.realpath(path)
                if paths is not settings.system_paths and not os.path.exists(real):
                    raise CannotIsolate(f"[worker.landlock] declares {path}, which does not exist")
                if os.path.exists(real):
                    self._refuse_own(path, real)
                    rules.append(Rule(real, access).for_what_it_is())
        return landlock.without_those_below(rules)

    def _refuse_own(self, path: str, real: str) -> None:
        for directory in self._own_directories:
            if os.path.commonpath((directory, real)) in (directory, real):
                raise CannotIsolate(
                    f"[worker.landlock] declares {path}, and the worker's own directory {directory} is in there or around it: "
                    "actions would see each other; put it elsewhere"
                )


def _write_into_root() -> None:
    os.close(os.open("/dev/null", os.O_RDWR))
    os.mkdir(f"/rexec-{os.urandom(8).hex()}")


def _refusal_of(attempt: Callable[[], None]) -> int:
    """The errno with which it fails, 0 if it does not."""
    try:
        attempt()
    except OSError as reason:
        return reason.errno or 0
    return 0


def _without_vfork(start: Start) -> subprocess.Popen[bytes]:
    """Start it by fork, which does not hold the interpreter's lock. Another that is started meanwhile just costs a bit more."""
    setattr(subprocess, "_USE_VFORK", False)  # noqa: B010 - it is documented, but has no type
    try:
        return start()
    finally:
        setattr(subprocess, "_USE_VFORK", True)  # noqa: B010


_OFFLINE: Final = (Sockets.NONE, Sockets.UNIX)


class _WithoutCollector:
    """No garbage is collected while a thread without rights is at work: what is collected belongs to others, and a gRPC object
    that ends there may start a thread, which would be without rights for ever."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._was_on = False

    def begin(self) -> None:
        """Until `end`, which must follow. Calls may overlap."""
        with self._lock:
            if self._users == 0:
                self._was_on = gc.isenabled()
                gc.disable()
            self._users += 1

    def end(self) -> None:
        """The thread is through."""
        with self._lock:
            self._users -= 1
            if self._users == 0 and self._was_on:
                gc.enable()


_without_collector: Final = _WithoutCollector()


def _in_a_thread(work: Callable[[], _T]) -> _T:
    """Do it in a new thread and wait for it. Raises what it raises, OSError (EAGAIN) if no thread can be had."""
    done = _thread.allocate_lock()
    done.acquire()
    _without_collector.begin()
    results: list[_T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as failure:  # noqa: BLE001 - raised in the other thread
            failures.append(failure)
        finally:
            done.release()

    try:
        _thread.start_new_thread(run, ())
    except RuntimeError as reason:
        _without_collector.end()
        raise OSError(errno.EAGAIN, str(reason)) from reason
    done.acquire()
    _without_collector.end()
    if failures:
        raise failures[0]
    return results[0]
