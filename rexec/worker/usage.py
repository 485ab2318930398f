"""What a command used up, as far as the kernel tells whoever waits for it."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from protos.rexec.worker.v1 import worker_pb2

_BLOCK_BYTES = 512
"""The unit of ru_inblock and ru_oublock (getrusage(2)), whatever the file system's."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of the first process and of all that were waited for below it; one that nobody waited for is not in it."""

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
    def of(usage: resource.struct_rusage, seen_memory_bytes: int) -> Usage:
        """From wait4(2), and the most memory that was seen in use by all processes at once."""
        return Usage(
            user_seconds=usage.ru_utime,
            system_seconds=usage.ru_stime,
            peak_memory_bytes=max(usage.ru_maxrss * 1024, seen_memory_bytes),
            read_bytes=usage.ru_inblock * _BLOCK_BYTES,
            written_bytes=usage.ru_oublock * _BLOCK_BYTES,
            voluntary_context_switches=usage.ru_nvcsw,
            involuntary_context_switches=usage.ru_nivcsw,
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
