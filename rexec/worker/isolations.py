"""Which isolation a setting stands for."""

from __future__ import annotations

from rexec.worker.isolation import Isolation, NoIsolation
from rexec.worker.settings import IsolationKind, WorkerSettings


def isolation_of(settings: WorkerSettings) -> Isolation:
    """The isolation configured, not tried out yet."""
    match settings.isolation:
        case IsolationKind.NONE:
            return NoIsolation()
