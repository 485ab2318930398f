"""The options of `isolation = "bubblewrap"`: the only place of their defaults."""

from __future__ import annotations

import os
from enum import StrEnum

import msgspec

from rexec.worker.system_paths import ETC, PROGRAMS


class RootKind(StrEnum):
    """What an action finds at /."""

    MACHINE = "machine"
    INPUTS = "inputs"


class BubblewrapSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[worker.bubblewrap]: what an action sees beside its inputs and its own TMPDIR."""

    root: RootKind = RootKind.MACHINE
    """What an action finds at / unless it says so itself (platform property FileSystemRoot). "machine": `system_paths` and
    `readable` of this machine, and its input root somewhere below. "inputs": its input root and nothing of this machine,
    which BuildStream needs; then an action is user 0 unless it asks for another (unixUID, unixGID)."""

    system_paths: tuple[str, ...] = (*PROGRAMS, *ETC)
    """Files and directories (with all below) that an action sees, read-only, with the machine as root. Those that this machine
    lacks are passed over. Whoever sets this replaces the default; to add something there is `readable`."""

    readable: tuple[str, ...] = ()
    """More of the same, which must exist: toolchains in /opt, for example."""

    allow_network: bool = True
    """Whether an action that asks for it (platform property network=on) gets this machine's network. All others have none."""

    def __post_init__(self) -> None:
        for field in ("system_paths", "readable"):
            for path in getattr(self, field):
                if not path.startswith("/") or "\0" in path or path != os.path.normpath(path) or path == "/":
                    raise ValueError(f"{field} has {path!r}, expected absolute paths, not / itself, without . or ..")
