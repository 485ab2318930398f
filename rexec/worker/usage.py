"""What a command used up, as far as the kernel tells whoever waits for it."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

from protos.rexec.worker.v1 import worker_pb2

_BLOCK_BYTES = 512
"""The unit of ru_inblock and ru_oublock (getrusage(2)), whatever the file system's."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the first process, of all that were waited for below it, and of orphans in its session; one that made a session of its
    own and was waited for by nobody is not in it."""

    user_seconds: float
    system_seconds: float
    peak_memory_bytes: int
    """Of the largest process, or of all together where a look at them while they ran showed more. Never less than what
    the agent itself had when it started the command: until its execve the new process shares the agent's memory, and the
    kernel counts that."""
    read_bytes: int
    """From block devices; what the page cache had is not in it."""
    written_bytes: int
    voluntary_context_switches: int
    involuntary_context_switches: int

    @staticmethod
    def of(
        first: resource.struct_rusage, seen_memory_bytes: int, orphans: Sequence[resource.struct_rusage] = ()
    ) -> Usage:
        """From wait4(2), and the most memory that was seen in use by all processes at once."""
        every = (first, *orphans)
        return Usage(
            user_seconds=sum(usage.ru_utime for usage in every),
            system_seconds=sum(usage.ru_stime for usage in every),
            peak_memory_bytes=max(seen_memory_bytes, *(usage.ru_maxrss * 1024 for usage in every)),
            read_bytes=sum(usage.ru_inblock for usage in every) * _BLOCK_BYTES,
            written_bytes=sum(usage.ru_oublock for usage in every) * _BLOCK_BYTES,
            voluntary_context_switches=sum(usage.ru_nvcsw for usage in every),
            involuntary_context_switches=sum(usage.ru_nivcsw for usage in every),
        )

    def to_proto(self) -> worker_pb2.ResourceUsage:
        """For ExecutedActionMetadata.auxiliary_metadata."""
        return worker_pb2.ResourceUsage(
            user_seconds=self.user_seconds,
            system_seconds=self.system_seconds,
            peak_memory_bytes=self.peak_memory_bytes,
            read_bytes=self.read_bytes,
            written_bytes=self.written_bytes,
            voluntary_context_switches=self.voluntary_context_switches,
            involuntary_context_switches=self.involuntary_context_switches,
        )
