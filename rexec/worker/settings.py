"""The options of a worker: the only place of their defaults."""

from __future__ import annotations

import math
import os
import socket
from enum import StrEnum

import msgspec

from rexec.address import channel_target, host_and_port
from rexec.worker.announcement import DEFAULT, FACTS, MAX_PROGRAMS, PROGRAM_NAME
from rexec.worker.bubblewrap_settings import BubblewrapSettings
from rexec.worker.capacity import capacity
from rexec.worker.landlock_settings import LandlockSettings

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where commands are looked up when neither the Command nor the settings say. Debian's default for root."""

MAX_SLOTS = 4096
"""No machine runs more actions at once; a scheduler refuses more unless [scheduler] max_slots says otherwise."""


class IsolationKind(StrEnum):
    """What keeps an action apart from the machine and from other actions."""

    NONE = "none"
    LANDLOCK = "landlock"
    BUBBLEWRAP = "bubblewrap"


class MemoryLimit(StrEnum):
    """When an action is killed for the memory it takes."""

    SLOT = "slot"
    MACHINE = "machine"
    OFF = "off"


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[worker]: one agent, its slots, its disk and what it offers."""

    name: str = ""
    """For people: ends up in ExecutedActionMetadata.worker. Empty: host name and process id."""

    metrics_listen: str = ""
    """HOST:PORT of the worker's own /metrics, /healthz and /readyz. Empty: none."""

    slots: int = msgspec.field(default_factory=lambda: capacity().whole_cores)
    """Actions that run at once, at most 4096. Default: the cores that this process may use, or what the processor limit of its
    container comes to."""

    prefetch_leases: int = 1
    """Leases taken beyond the free slots; their inputs are fetched and laid out while the slots are busy."""

    work_dir: str = ""
    """Where actions run. One agent at a time holds it. Empty: chosen by the command line (below its state directory)."""

    cache_dir: str = ""
    """Where input files are kept, on the same file system as `work_dir` or every input is copied. Empty: `work_dir`/cache."""

    cache_max_bytes: int = 10 << 30
    """Bytes of input files kept on disk. An input root larger than this cannot run here."""

    reuse_input_roots: bool = True
    """Lay out the inputs of an action by changing what an earlier one has left of its own. Off: each gets a new directory."""

    announce: tuple[str, ...] = DEFAULT
    """What to find out about the machine when the worker starts, and to offer as platform properties: os (debian-12), libc
    (glibc-2.36), cores, memory (memory-gib), and programs by their names: each offers the versions found (gcc=12.2.0) and the
    SHA-256 of the file (gcc-digest). Empty: nothing but OSFamily, ISA and Arch."""

    properties: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """Platform properties offered beside those found out about the machine (OSFamily, ISA, `announce`), which the same names
    replace; each may have several values, or none."""

    resources: dict[str, int] = msgspec.field(default_factory=dict)
    """Countable things that actions use up while they run, for example {"gpu" = 1}. Beside those found out about the machine
    or container, which the same names replace: `cpu` in thousandths of a core, `memory` in bytes."""

    memory_reserve_bytes: int = 512 << 20
    """Of the memory found out, what is left to the agent and the system; never more than half of it."""

    memory_limit: MemoryLimit = MemoryLimit.SLOT
    """When an action is killed for the memory it takes. "slot": when it is more than it asked for, or else than its slots stand
    for; it is run once more where there is more for it. "machine": only when memory runs out, and then the one that is furthest
    above its share. "off": never by the worker."""

    control_groups: bool = True
    """Whether each action gets a control group (version 2) where the worker may make some, so that the kernel itself bounds its
    memory and ends all its processes; the log says at the start whether it may. Off: the worker alone sees to both."""

    least_available_memory_bytes: int = 256 << 20
    """With less left of the machine's or container's memory, no leases are taken, and an action is killed before the kernel
    chooses a process. Never more than a sixteenth of the memory. 0: not looked at."""

    least_free_disk_bytes: int = 512 << 20
    """With less room left where actions run, no leases are taken, and the cache gives way. Never more than a twentieth of the
    file system. 0: not looked at."""

    max_load_per_core: float = 0.0
    """With a higher load average (of a minute, for each core of the machine) no leases are taken: for machines that do other work
    too. 0: not looked at."""

    max_open_files: int = 65_536
    """Descriptors of each process of an action (RLIMIT_NOFILE). Linkers need more than the 1,024 of old; a thousand million, as
    some container runtimes have it, makes programs that close every possible one take minutes."""

    max_processes: int = 2048
    """Processes of one action at once; with more it is killed, as a fork bomb. 0: any number."""

    file_max_bytes: int = 64 << 30
    """The largest file that an action may write (RLIMIT_FSIZE): a larger one could not be an output."""

    instance_names: list[str] = msgspec.field(default_factory=list)
    """Instances to serve. Empty: all of them."""

    isolation: IsolationKind = IsolationKind.NONE
    """What keeps an action apart from the machine and from other actions. Offered as the platform property Isolation.
    "none": nothing, it is a plain process. "landlock": without privileges or other programs, it reads its inputs and what
    [worker.landlock] declares, and writes its input root and its TMPDIR. "bubblewrap": through the
    program bwrap, in namespaces of its own: no other process, no network, and of the files those and what
    [worker.bubblewrap] declares."""

    landlock: LandlockSettings = LandlockSettings()

    bubblewrap: BubblewrapSettings = BubblewrapSettings()

    environment: dict[str, str] = msgspec.field(default_factory=lambda: {"PATH": DEFAULT_PATH})
    """The declared default environment of every action; the Command's variables override it. Nothing else gets in,
    except TMPDIR, a directory that belongs to the action alone."""

    stdout_max_bytes: int = 1 << 30
    """Most bytes kept of the standard output, and of the standard error, of one action. What comes after is thrown away,
    which the message of the result says; the action goes on."""

    output_max_bytes: int = 64 << 30
    """Most bytes that the outputs of one action may add up to; beyond it the action fails (a sparse file of an exabyte takes
    no disk, but hashing it takes years)."""

    output_max_files: int = 1_000_000
    """Most files, directories and symlinks in the outputs of one action."""

    kill_grace_seconds: float = 2.0
    """Between SIGTERM and SIGKILL for an action that ran out of time."""

    drain_grace_seconds: float = 25.0
    """After SIGTERM: how long running actions may take to end before they are handed back. Below Kubernetes' default
    of 30 s, so that handing back still fits."""

    parent_pid: int = 0
    """The process that starts this one: leave at once when it ends, however it ends. 0: go on without it."""

    scheduler: tuple[str, ...] = ()
    """Addresses (grpc://, grpcs://) of the scheduler, and of those that stand by for it: tried in turn. Empty: the server,
    which then passes the stream on. Blobs come from the server in either case."""

    reconnect_min_seconds: float = 0.05
    """The pause before the second attempt to reach the scheduler; doubled for each further one."""

    reconnect_max_seconds: float = 1.0
    """The longest such pause. Actual pauses are random between nothing and this, so that a thousand workers do not come back
    in the same instant. There is no end to the attempts: what runs here runs on."""

    upload_patience_seconds: float = 300.0
    """How long outputs are kept for a store that is not reached, beyond the half minute for which each call is tried again.
    Then the action is handed back as failed here."""

    def __post_init__(self) -> None:
        if self.metrics_listen:
            host_and_port(self.metrics_listen)
        for field in (
            "slots", "cache_max_bytes", "stdout_max_bytes", "output_max_bytes", "output_max_files", "file_max_bytes",
        ):  # fmt: skip
            _require(getattr(self, field) >= 1, field, getattr(self, field), "at least 1")
        for field in (
            "memory_reserve_bytes", "least_available_memory_bytes", "least_free_disk_bytes", "max_load_per_core",
            "max_processes",
        ):  # fmt: skip
            _require(0 <= getattr(self, field) < math.inf, field, getattr(self, field), "0 or more")
        # Less than a shell and its pipes need is a mistake.
        _require(self.max_open_files >= 16, "max_open_files", self.max_open_files, "at least 16")
        for name in self.announce:
            _require(
                bool(PROGRAM_NAME.fullmatch(name)), "announce", repr(name), "names of programs, without directories"
            )
        programs = len(set(self.announce) - set(FACTS))
        _require(programs <= MAX_PROGRAMS, "announce", f"{programs} programs", f"at most {MAX_PROGRAMS}")
        for name, amount in self.resources.items():
            _require(bool(name) and 0 <= amount < 1 << 63, "resources", f"{name}={amount}", "a name and 0 or more")
        _require(self.slots <= MAX_SLOTS, "slots", self.slots, f"at most {MAX_SLOTS}")
        _require(self.prefetch_leases >= 0, "prefetch_leases", self.prefetch_leases, "0 or more")
        for address in self.scheduler:
            channel_target(address)
        for field in ("kill_grace_seconds", "drain_grace_seconds", "upload_patience_seconds"):
            _require(getattr(self, field) >= 0, field, getattr(self, field), "0 or more seconds")
        _require(
            self.reconnect_min_seconds > 0, "reconnect_min_seconds", self.reconnect_min_seconds, "more than 0 seconds"
        )
        _require(
            self.reconnect_max_seconds >= self.reconnect_min_seconds,
            "reconnect_max_seconds",
            self.reconnect_max_seconds,
            f"at least reconnect_min_seconds, {self.reconnect_min_seconds}",
        )
        for name, value in self.environment.items():
            _require(
                bool(name) and "=" not in name and "\0" not in name + value,
                "environment",
                f"{name}={value}",
                "a name without '=' and no NUL",
            )

    def offered_resources(self) -> dict[str, int]:
        """What actions may use up together: `cpu`, `memory`, and what is configured, which has the last word."""
        found = capacity()
        offered = {"cpu": found.cpu_millis}
        if found.memory_bytes:
            offered["memory"] = found.memory_bytes - min(self.memory_reserve_bytes, found.memory_bytes // 2)
        return {**offered, **self.resources}

    def memory_share_bytes(self, slots: int, offered_bytes: int) -> int:
        """What so many slots stand for, of the memory that actions may use up together."""
        return offered_bytes * slots // self.slots

    @property
    def max_kept_rooms(self) -> int:
        """Input roots kept for later actions: one for each that can be there at once."""
        return self.slots + self.prefetch_leases if self.reuse_input_roots else 0

    @property
    def worker_name(self) -> str:
        """The name given, or one made of the host's name and the process id."""
        return self.name or f"{socket.gethostname()}-{os.getpid()}"


def _require(holds: bool, field: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value}, expected {expected}")
