"""What this machine is and how it is doing: platform properties found out, and the figures of a heartbeat."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

_ISA = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": "aarch64", "arm64": "aarch64"}
"""Names of the Remote Execution API platform lexicon, where it has one."""

_ARCH = {"x86-64": "amd64", "aarch64": "arm64"}
"""The same in the words of container images, which many Bazel workspaces use."""


def properties_of_machine() -> dict[str, list[str]]:
    """Platform properties that need no configuration.

    OSFamily and ISA are those of the REAPI platform lexicon. Bazel workspaces in the wild say `OSFamily = "Linux"` and
    `Arch = "amd64"` as well, and mean this machine, so those are offered too.
    """
    system, machine = platform.system(), platform.machine().lower()
    isa = _ISA.get(machine, machine)
    return {
        "OSFamily": sorted({system, system.lower()}),
        "ISA": [isa],
        "Arch": sorted({machine, _ARCH.get(isa, machine)}),
    }


def offered_properties(
    configured: Mapping[str, Sequence[str]], isolation: Mapping[str, Sequence[str]]
) -> list[tuple[str, str]]:
    """All properties that the worker offers, sorted: those found out and those that the isolation makes true, each of which a
    configured one of the same name replaces."""
    offered = {**properties_of_machine(), **isolation, **configured}
    return sorted((name, value) for name, values in offered.items() for value in values)


def cores() -> int:
    """Of the machine, which its load average is about, whatever this process may use of them."""
    return os.cpu_count() or 1


def load() -> float:
    """Processes that wanted to run, averaged over a minute."""
    return os.getloadavg()[0]


def available_memory_bytes(meminfo: str = "/proc/meminfo") -> int:
    """What the machine could give without swapping (proc(5), MemAvailable); 0 if the kernel does not say."""
    try:
        lines = Path(meminfo).read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
