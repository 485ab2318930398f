"""What a worker says of its machine as platform properties, beside OSFamily, ISA and Arch (rexec/worker/machine.py).

    gcc=12.2.0, gcc-digest=<SHA-256>    a program: g++, clang, clang++, rustc and ld alike; several values for several versions
    os=debian-12                        ID and VERSION_ID of os-release(5)
    libc=glibc-2.36                     what programs are linked with
    cores=8, memory-gib=31              what actions share, whole figures rounded down

It is found out once, when the worker starts: what an action may count on must not change while it waits for the worker. There
are at most MAX_VALUES of them, of programs and the like first those that the plain name runs.

The scheduler knows a property by its name from then on: an action that requires gcc=13 waits, with the reason, for a worker that
has it, where without any such announcement it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rexec.worker.capacity import capacity
from rexec.worker.libc import libc
from rexec.worker.toolchain import Program, Toolchain

PROGRAMS: Final = ("gcc", "g++", "clang", "clang++", "rustc", "ld")
FACTS: Final = ("os", "libc", "cores", "memory")
DEFAULT: Final = PROGRAMS + FACTS

MAX_VALUES: Final = 24
"""With what every worker offers these are about 30, which is as many as displays show."""

MAX_PROGRAMS: Final = 20
"""Programs that may be configured."""

PROGRAM_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}")

_MAX_FILE_BYTES: Final = 64 << 10
_WORD: Final = re.compile(r"[^A-Za-z0-9._-]+")

Properties = dict[str, list[str]]


def announced(names: Sequence[str], environment: Mapping[str, str], memory: Path) -> Properties:
    """The properties of these facts and programs. Blocks: it runs programs (rexec/worker/toolchain.py says for how long)."""
    properties: Properties = {}
    if "os" in names:
        _add(properties, "os", operating_system())
    if "libc" in names:
        _add(properties, "libc", libc())
    found = capacity()
    if "cores" in names:
        _add(properties, "cores", str(found.whole_cores))
    if "memory" in names and found.memory_bytes:
        _add(properties, "memory-gib", str(found.memory_bytes >> 30))
    programs = [name for name in names if name not in FACTS]
    for name, program in _in_turn(Toolchain(environment, memory).find(programs)):
        if sum(map(len, properties.values())) + 2 > MAX_VALUES:
            break
        _add(properties, name, program.version)
        _add(properties, f"{name}-digest", program.digest)
    return properties


def operating_system(root: str = "/") -> str:
    """Such as debian-12; empty if the machine does not say."""
    for place in ("etc/os-release", "usr/lib/os-release"):
        try:
            with open(Path(root, place), "rb") as file:
                text = file.read(_MAX_FILE_BYTES).decode(errors="replace")
        except OSError:
            continue
        said = {}
        for line in text.splitlines():
            name, separator, value = line.partition("=")
            if separator and name in ("ID", "VERSION_ID"):
                said[name] = _WORD.sub("", value)[:50]
        return "-".join(said[name] for name in ("ID", "VERSION_ID") if said.get(name))
    return ""


def _in_turn(found: Mapping[str, Sequence[Program]]) -> list[tuple[str, Program]]:
    """First the first of each, then the second of each, and so on."""
    most = max(map(len, found.values()), default=0)
    return [(name, programs[turn]) for turn in range(most) for name, programs in found.items() if turn < len(programs)]


def _add(properties: Properties, name: str, value: str) -> None:
    values = properties.setdefault(name, []) if value else []
    if value not in values:
        values.append(value)
