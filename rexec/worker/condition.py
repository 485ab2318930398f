"""How the worker's machine is: what a heartbeat says of it, and whether it can take leases."""

from __future__ import annotations

import structlog

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import ActionContext
from rexec.worker.leasing_guard import LeasingGuard, Reading
from rexec.worker.machine import load
from rexec.worker.memory_gauge import MemoryGauge
from rexec.worker.reserves import reserves_of

_log = structlog.get_logger()


class Condition:
    """Looked at with each heartbeat. A disk that is short is relieved of what the worker itself keeps there."""

    def __init__(self, context: ActionContext) -> None:
        self._context = context
        self._gauge = MemoryGauge()
        self._guard = LeasingGuard(reserves_of(context.settings, context.workspace.size_bytes()))
        self.pause_reason = ""
        """Why the machine can take no leases now; "" if it can."""

    def look(self) -> worker_pb2.Heartbeat:
        """How it is now; `pause_reason` holds from here to the next look."""
        context = self._context
        reading = Reading(context.workspace.free_bytes(), self._gauge.available_bytes(), load())
        before, self.pause_reason = self.pause_reason, self._guard.decide(reading)
        if self.pause_reason and not before:
            _log.warning("takes no leases for the time being", reason=self.pause_reason)
        elif before and not self.pause_reason:
            _log.info("takes leases again", reason_before=before)
        if self._guard.disk_is_short:
            context.kept.drop_all()
            if context.cache_is_beside:
                context.files.give_back(self._guard.lacking_disk_bytes(reading))
        return worker_pb2.Heartbeat(
            load=reading.load,
            cache_bytes=context.files.used_bytes,
            free_disk_bytes=reading.free_disk_bytes,
            available_memory_bytes=reading.available_memory_bytes,
            pause_reason=self.pause_reason,
        )
