"""REAPI Capabilities: what this server can do, told from what its parts can do.

The cache part is always there. The execution part comes from whoever executes, and needs no scheduler or worker to be up:
a client that finds no execution at start gives up for good, while one that executes too early only waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cas.chunking import FAST_CDC_AVERAGE_BYTES, FAST_CDC_SEED, REP_MAX_HORIZON_BYTES, REP_MAX_MIN_BYTES
from cas.compression import Compressor
from cas.context import RequestContext
from cas.hashing import DigestFunction
from cas.instances import Instances
from cas.services.cas import MAX_BATCH_TOTAL_SIZE_BYTES
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.build.bazel.semver import semver_pb2

LOW_API_VERSION: Final = semver_pb2.SemVer(major=2, minor=0)
"""Bazel up to 4 speaks 2.0 and refuses a server whose range does not hold it."""

HIGH_API_VERSION: Final = semver_pb2.SemVer(major=2, minor=12)

PRIORITIES: Final = re_pb2.PriorityCapabilities(
    priorities=[re_pb2.PriorityCapabilities.PriorityRange(min_priority=-(1 << 31), max_priority=(1 << 31) - 1)]
)
"""Every int32 (REAPI, ExecutionPolicy.priority, ResultsCachePolicy.priority). Bazel refuses to send a priority that no
advertised range holds; Buck2 sends one always."""

_FUNCTIONS: Final = [function.value for function in DigestFunction if function is not DigestFunction.MD5]
"""MD5 is understood, for clients that know nothing else, and never offered: two files with the same MD5 are easily made."""

_COMPRESSORS: Final = [compressor.value for compressor in Compressor if compressor is not Compressor.IDENTITY]

Execution = Callable[[RequestContext], re_pb2.ExecutionCapabilities]
"""Says what the executing part can do: exec_enabled, node properties, and the priorities if not all. The digest functions
are filled in here, for they are those of the cache."""


class Capabilities:
    """build.bazel.remote.execution.v2.Capabilities."""

    def __init__(self, instances: Instances, execution: Execution | None = None, max_blob_bytes: int = 0) -> None:
        """Without `execution` the server is a cache alone. `max_blob_bytes` is the largest blob, 0 for any size."""
        self._instances = instances
        self._execution = execution
        self._max_blob_bytes = max_blob_bytes

    async def GetCapabilities(
        self, request: re_pb2.GetCapabilitiesRequest, context: RequestContext
    ) -> re_pb2.ServerCapabilities:
        """What the caller can do here.

        Raises NotAllowed for one who may not even read, and MalformedRequest for an unknown instance name.
        """
        self._instances.readable(request.instance_name, context.identity)
        capabilities = re_pb2.ServerCapabilities(
            low_api_version=LOW_API_VERSION,
            high_api_version=HIGH_API_VERSION,
            cache_capabilities=re_pb2.CacheCapabilities(
                digest_functions=_FUNCTIONS,
                action_cache_update_capabilities=re_pb2.ActionCacheUpdateCapabilities(
                    update_enabled=context.identity.may_update_action_cache
                ),
                cache_priority_capabilities=PRIORITIES,
                max_batch_total_size_bytes=MAX_BATCH_TOTAL_SIZE_BYTES,
                symlink_absolute_path_strategy=re_pb2.SymlinkAbsolutePathStrategy.ALLOWED,
                supported_compressors=_COMPRESSORS,
                supported_batch_update_compressors=_COMPRESSORS,
                max_cas_blob_size_bytes=self._max_blob_bytes,
                split_blob_support=True,
                splice_blob_support=True,
                fast_cdc_2020_params=re_pb2.FastCdc2020Params(
                    avg_chunk_size_bytes=FAST_CDC_AVERAGE_BYTES, seed=FAST_CDC_SEED
                ),
                rep_max_cdc_params=re_pb2.RepMaxCdcParams(
                    min_chunk_size_bytes=REP_MAX_MIN_BYTES, horizon_size_bytes=REP_MAX_HORIZON_BYTES
                ),
            ),
        )
        if self._execution is not None:
            execution = capabilities.execution_capabilities
            execution.CopyFrom(self._execution(context))
            # REAPI, ExecutionCapabilities: the single field is for clients that do not know the repeated one.
            execution.digest_function = re_pb2.DigestFunction.SHA256
            execution.digest_functions[:] = _FUNCTIONS
            if not execution.HasField("execution_priority_capabilities"):
                execution.execution_priority_capabilities.CopyFrom(PRIORITIES)
            execution.exec_enabled = execution.exec_enabled and context.identity.may_execute
        return capabilities
