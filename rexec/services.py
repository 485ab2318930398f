"""Which services a role offers, built from what it works on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from google.longrunning import operations_proto_pb2

from cas.file_lock import DirectoryUnusable
from cas.services.action_cache import ActionCacheService
from cas.services.bytestream import ByteStream, OtherReader
from cas.services.capabilities import PRIORITIES, Capabilities
from cas.services.cas import ContentAddressableStorage
from cas.uploads import Uploads
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from rexec.assets import FetchUnusable, open_assets
from rexec.config import Config
from rexec.descriptors import max_uploads, raised
from rexec.edge import CannotServe, Edge
from rexec.rpc import RpcServer
from rexec.scheduler.admission import Admission
from rexec.scheduler.clock import Clock
from rexec.scheduler.execution import ExecutionService
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.log_streams import LogStreams
from rexec.scheduler.operations import OperationsService
from rexec.scheduler.scheduler import Scheduler
from rexec.stores import Held

NODE_PROPERTIES = ("mtime", "unix_mode")
"""What workers apply to inputs and report of outputs (REAPI, ExecutionCapabilities.supported_node_properties)."""


@asynccontextmanager
async def offer_cache(
    server: RpcServer, config: Config, held: Held, executes: bool, others: Sequence[OtherReader] = ()
) -> AsyncIterator[None]:
    """Capabilities, CAS, ByteStream and ActionCache; `others` are what ByteStream reads beside blobs."""
    instances, max_blob_bytes = held.instances, config.store.max_blob_bytes
    async with Uploads(max_uploads=max_uploads(raised())) as uploads:
        execution = (lambda _context: _execution_capabilities()) if executes else None
        server.add(re_pb2, "Capabilities", Capabilities(instances, execution, max_blob_bytes))
        server.add(re_pb2, "ContentAddressableStorage", ContentAddressableStorage(instances, max_blob_bytes))
        server.add(re_pb2, "ActionCache", ActionCacheService(instances))
        server.add(bytestream_pb2, "ByteStream", ByteStream(instances, uploads, max_blob_bytes, others=others))
        yield


def offer_execution(
    edge: Edge, config: Config, held: Held, scheduler: Scheduler, inputs: InputRoots, clock: Clock
) -> Sequence[OtherReader]:
    """Execution and Operations. Returns what ByteStream reads of actions that run."""
    admission = Admission(config.scheduler, inputs, clock)
    execution = ExecutionService(held.instances, scheduler, admission, config.scheduler, observer=edge.telemetry)
    edge.server.add(re_pb2, "Execution", execution)
    operations = OperationsService(held.instances, scheduler, config.scheduler, clock)
    edge.server.add(operations_proto_pb2, "Operations", operations)
    return [LogStreams(held.instances, scheduler)]


@asynccontextmanager
async def offer_assets(server: RpcServer, config: Config, held: Held) -> AsyncIterator[None]:
    """Remote Asset, remembered beside the action results. Raises CannotServe."""
    # A store that is elsewhere keeps blobs; what is remembered of them is kept here.
    directory = config.state_path if config.store.kind in ("remote", "sharded") else held.directory
    async with AsyncExitStack() as stack:
        try:
            assets = open_assets(config.assets, held.instances, directory, config.state_path / "fetch")
            fetch, push = await stack.enter_async_context(assets)
        except (DirectoryUnusable, FetchUnusable, OSError) as error:
            raise CannotServe(str(error)) from error
        server.add(remote_asset_pb2, "Fetch", fetch)
        server.add(remote_asset_pb2, "Push", push)
        yield


def _execution_capabilities() -> re_pb2.ExecutionCapabilities:
    return re_pb2.ExecutionCapabilities(
        exec_enabled=True, execution_priority_capabilities=PRIORITIES, supported_node_properties=NODE_PROPERTIES
    )
