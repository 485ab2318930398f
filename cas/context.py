"""What a service method knows of the call beside the request: who asks, for which build, until when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


@dataclass(frozen=True, slots=True)
class Identity:
    """Who makes a request, and what he may do. The default is the identity of a server without authentication."""

    name: str = "anonymous"
    may_read: bool = True
    """Read blobs and action results, write blobs."""
    may_execute: bool = True
    may_update_action_cache: bool = True
    """ActionCache.UpdateActionResult; REAPI, ActionCacheUpdateCapabilities.update_enabled."""
    may_work: bool = True
    """Attach as a worker, which sees what it runs and decides what comes out of it."""
    may_front: bool = True
    """Speak for clients and workers that are known elsewhere, as a frontend of the scheduler does."""
    may_operate: bool = True
    """Take workers out of service."""
    instance_names: frozenset[str] | None = None
    """The instances that all this is about; None: every one."""
    tenant: str = ""
    """The team whose share of the workers his actions take; empty: the instance that he uses stands for it."""

    def may_use(self, instance_name: str) -> bool:
        """Whether requests for the instance are answered at all."""
        return self.instance_names is None or instance_name in self.instance_names


ANYONE = Identity()


@dataclass(slots=True)
class RequestContext:
    """One RPC, seen from a service.

    Created by the edge (rexec/rpc.py) for each call. Cancellation needs no field: when the client goes away the task that
    runs the method is cancelled.
    """

    method: str = ""
    """The full name of the RPC, "/package.Service/Method"."""
    peer: str = ""
    identity: Identity = ANYONE
    metadata: Mapping[str, str | bytes] = field(default_factory=dict)
    """The call's metadata (headers), names in lower case; values of "-bin" headers are bytes."""
    request_metadata: re_pb2.RequestMetadata = field(default_factory=re_pb2.RequestMetadata)
    """REAPI RequestMetadata; empty if the client sent none or one that does not parse."""
    deadline_seconds: float | None = None
    """Seconds left when the call arrived, None without a deadline."""
    send_trailer: Callable[[str, str], None] = lambda _name, _value: None
    """Add a trailing metadata entry to the answer."""
