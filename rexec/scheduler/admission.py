"""From an ExecuteRequest to a task that can run, or to the reason why not.

All that is refused here is refused before an operation exists, as the status of the RPC (REAPI, Execution.Execute).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec
from google.protobuf.message import DecodeError, Message

from cas.action_cache import ActionKey
from cas.context import RequestContext
from cas.digest import Digest, function_for
from cas.errors import ActionResultNotFound, BlobNotFound, InputsMissing, MalformedRequest
from cas.instances import Instance
from cas.store import SMALL_BLOB_BYTES, BlobStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.command import check_command, outputs_of, platform_of, timeout_of
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.likeness import class_of, key_of
from rexec.scheduler.owner import owner_of
from rexec.scheduler.scheduler import Inlining, Run
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate

MAX_MESSAGE_BYTES = 3 << 20
"""Of an Action or a Command: more than any system takes as arguments (Linux: 2 MiB), and little enough to be read whole and
kept for as long as the action waits."""

AnyMessage = TypeVar("AnyMessage", bound=Message)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may run."""

    instance: Instance
    candidate: Candidate
    run: Run
    inlining: Inlining
    may_read_cache: bool
    """Neither the request nor the action rules out a cached result."""

    @property
    def key(self) -> ActionKey:
        """Where the action cache keeps the result."""
        return ActionKey(self.instance.name, self.candidate.action_digest)

    async def cached(self) -> re_pb2.ActionResult:
        """The result in the action cache. Raises ActionResultNotFound if there is none or it must not be used."""
        if not self.may_read_cache:
            raise ActionResultNotFound("the cache is not to be read")
        return await self.instance.action_cache.get(self.key)


class Admission:
    """Reads what a request names and decides whether it can run."""

    def __init__(self, settings: SchedulerSettings, inputs: InputRoots, clock: Clock) -> None:
        self._settings = settings
        self._inputs = inputs
        self._clock = clock

    async def admit(self, instance: Instance, request: re_pb2.ExecuteRequest, context: RequestContext) -> Admitted:
        """Raises MalformedRequest, and InputsMissing for an Action or Command that the store does not have."""
        settings = self._settings
        digest = Digest.from_proto(request.action_digest, function_for(request.digest_function))
        action = await _read(instance.store, digest, re_pb2.Action)
        command_digest = Digest.from_proto(action.command_digest, digest.function)
        Digest.from_proto(action.input_root_digest, digest.function)
        command = await _read(instance.store, command_digest, re_pb2.Command)
        run = Run(action, command, context.request_metadata, self._clock.wall())
        check_command(command)
        requirement, demand = platform_of(instance.name, action, command, settings.ignored_properties)
        action_class = class_of(requirement, command, run.request_metadata)
        candidate = Candidate(
            instance_name=instance.name,
            action_digest=digest,
            requirement=requirement,
            priority=request.execution_policy.priority,
            do_not_cache=action.do_not_cache,
            timeout_seconds=timeout_of(action, settings.default_timeout_seconds, settings.max_timeout_seconds),
            owner=owner_of(instance.name, context.identity, run.request_metadata),
            demand=demand,
            action_class=action_class,
            action_key=key_of(action_class, command, run.request_metadata),
            payload=run,
        )
        # Only what can be an output: the rest would be kept for as long as the operation is.
        files = frozenset(outputs_of(command)).intersection(request.inline_output_files)
        inlining = Inlining(request.inline_stdout, request.inline_stderr, files)
        may_read_cache = not (request.skip_cache_lookup or action.do_not_cache)
        return Admitted(instance, candidate, run, inlining, may_read_cache)

    async def check_inputs(self, admitted: Admitted) -> Candidate:
        """The candidate with the names of its largest inputs.

        Raises InputsMissing for anything below the input root, MalformedRequest for a working directory outside it.
        """
        function = admitted.candidate.action_digest.function
        root = Digest.from_proto(admitted.run.action.input_root_digest, function)
        store = admitted.instance.store
        await self._inputs.require(admitted.instance.name, store, root)
        await self._inputs.require_directory(store, root, check_command(admitted.run.command))
        if not self._settings.affinity.enabled:
            return admitted.candidate
        return msgspec.structs.replace(admitted.candidate, affinity=self._inputs.largest(admitted.instance.name, root))


async def _read(store: BlobStore, digest: Digest, kind: type[AnyMessage]) -> AnyMessage:
    """The message that a blob holds. Raises InputsMissing and MalformedRequest."""
    name = kind.DESCRIPTOR.name
    if digest.size_bytes > MAX_MESSAGE_BYTES:
        raise MalformedRequest(f"{name} {digest} is too large, expected at most {MAX_MESSAGE_BYTES} bytes")
    if digest.size_bytes <= SMALL_BLOB_BYTES:
        data = (await store.read_many([digest])).get(digest)
    else:
        try:
            async with store.open(digest) as chunks:
                data = b"".join([chunk async for chunk in chunks])
        except BlobNotFound:
            data = None
    if data is None:
        raise InputsMissing([digest])
    try:
        return kind.FromString(data)
    except DecodeError:
        raise MalformedRequest(f"blob {digest} is not an encoded {name}") from None
