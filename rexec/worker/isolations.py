"""Which isolation a setting stands for."""

from __future__ import annotations

from rexec.worker.bubblewrap import Bubblewrap
from rexec.worker.isolation import Isolation, NoIsolation
from rexec.worker.landlock_isolation import LandlockIsolation
from rexec.worker.settings import IsolationKind, WorkerSettings


def isolation_of(settings: WorkerSettings) -> Isolation:
    """The isolation configured, not tried out yet."""
    own = [path for path in (settings.work_dir, settings.cache_dir) if path]
    match settings.isolation:
        case IsolationKind.NONE:
            return NoIsolation()
        case IsolationKind.LANDLOCK:
            return LandlockIsolation(settings.landlock, own)
        case IsolationKind.BUBBLEWRAP:
            return Bubblewrap(settings.bubblewrap, own, etc_copy=settings.work_dir and f"{settings.work_dir}/etc")
