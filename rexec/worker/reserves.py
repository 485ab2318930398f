"""What is to be left on this machine: the settings, scaled down where the machine is small."""

from __future__ import annotations

from rexec.worker.capacity import capacity
from rexec.worker.leasing_guard import Reserves
from rexec.worker.machine import cores
from rexec.worker.settings import WorkerSettings

_MEMORY_PART = 16
_DISK_PART = 20


def reserves_of(settings: WorkerSettings, disk_bytes: int) -> Reserves:
    """`disk_bytes` is the size of the file system that actions run on."""
    return Reserves(
        free_disk_bytes=min(settings.least_free_disk_bytes, disk_bytes // _DISK_PART),
        available_memory_bytes=least_available_bytes(settings),
        max_load=settings.max_load_per_core * cores(),
    )


def least_available_bytes(settings: WorkerSettings) -> int:
    """Of memory; 0 if nothing is known about it."""
    return min(settings.least_available_memory_bytes, capacity().memory_bytes // _MEMORY_PART)
