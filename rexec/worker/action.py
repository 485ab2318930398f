"""One lease from beginning to end: fetch, lay out, run, collect, upload; and whose fault it is when that fails.

The slot is held while the command runs and no longer: the inputs of the next action are fetched and laid out beside it, and
outputs are uploaded after it has been given back.

Two kinds of failure (worker.proto, Finished.Failure): what is wrong with the action itself is told to its clients, and so
is a store without room for its outputs, because every worker has the same store; what went wrong here, such as a full disk,
is retried on another worker.
"""

from __future__ import annotations

import asyncio
import errno
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from google.protobuf import timestamp_pb2

from cas.cancellation import to_the_end
from cas.digest import Digest, DigestFunction, function_for
from cas.errors import (
    ActionTimedOut,
    DigestMismatch,
    FailedPrecondition,
    InputsMissing,
    MalformedRequest,
    StatusError,
)
from cas.store import BlobStore
from cas.tree import DirectoryCache, load_tree
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.blob_files import FileKey
from rexec.worker.files import FileCache, InputsTooLarge
from rexec.worker.hold import Hold
from rexec.worker.inputs import Inputs, inputs_of
from rexec.worker.isolation import Confinable, Confined, Isolation, NoIsolation, platform_of
from rexec.worker.kept_rooms import KeptRooms
from rexec.worker.layout import CannotReuse, Layout, lay_out
from rexec.worker.listing import Listings
from rexec.worker.live_log import LeaseLog
from rexec.worker.oom import OomWatch
from rexec.worker.outage import Outage
from rexec.worker.outputs import Outputs, collect
from rexec.worker.processes import Unkillable
from rexec.worker.properties import require_known_names
from rexec.worker.runner import Exit, Runner
from rexec.worker.settings import WorkerSettings
from rexec.worker.slots import Slots
from rexec.worker.stream_digest import digest_of_stream
from rexec.worker.streams import CapturedStream
from rexec.worker.upload import FULL_STORE_PAUSES_SECONDS, NotKept, Source, upload
from rexec.worker.verdict import DiskFull, WorkerFault, evidence_of, fail, message_of, name_of
from rexec.worker.workspace import Room, Workspace

_log = structlog.get_logger()
_T = TypeVar("_T")

Progress = Callable[["worker_pb2.Progress.Phase", re_pb2.ExecutedActionMetadata], None]
"""Called when a phase begins, with the timestamps so far."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_LEAST_FREE_BYTES = 16 << 20
"""With less than this left on the disk, a command that failed is taken to have failed for want of space."""


_MAX_REWRITERS = 10_000


@dataclass(slots=True)
class ActionContext:
    """What all actions of an agent share."""

    settings: WorkerSettings
    workspace: Workspace
    files: FileCache
    runner: Runner
    slots: Slots
    store_of: Callable[[str], BlobStore]
    """The store of an instance name."""
    outage: Outage
    kept: KeptRooms
    isolation: Isolation = field(default_factory=NoIsolation)
    leaving: Callable[[], bool] = lambda: False
    """Whether the agent was told to stop."""
    attached: Callable[[], bool] = lambda: True
    """Whether the scheduler hears what becomes of a lease."""
    wall_clock_ns: Callable[[], int] = time.time_ns
    directories: DirectoryCache = field(default_factory=DirectoryCache)
    listings: Listings = field(default_factory=Listings)
    oom: OomWatch = field(default_factory=OomWatch)
    cache_is_beside: bool = True
    """Whether the file cache is on the disk of the work directory."""
    memory_bytes: int = 0
    """What actions may take together; 0 if it is not known."""
    rewriters: set[str] = field(default_factory=set)
    """Hashes of actions in whose company inputs were changed: they get copies when they come again."""
    full_store_pauses_seconds: tuple[float, ...] = FULL_STORE_PAUSES_SECONDS

    def __post_init__(self) -> None:
        self.files.evicted = self.kept.drop_those_with

    def note_rewriter(self, action_hash: str) -> None:
        """Give the action files of its own from now on."""
        if len(self.rewriters) >= _MAX_REWRITERS:
            self.rewriters.clear()
        self.rewriters.add(action_hash)


def slots_of(lease: worker_pb2.Lease) -> int:
    """How many slots the command takes: one unless the scheduler says more."""
    return max(1, lease.demand.slots)


class LeasedAction:
    """One lease being run."""

    def __init__(
        self, context: ActionContext, lease: worker_pb2.Lease, progress: Progress, log: LeaseLog | None = None
    ) -> None:
        self._context = context
        self._lease = lease
        self._progress = progress
        self._log = log or LeaseLog(lambda _piece: None)
        self._metadata = re_pb2.ExecutedActionMetadata(worker=context.settings.worker_name)
        if lease.HasField("queued_timestamp"):
            self._metadata.queued_timestamp.CopyFrom(lease.queued_timestamp)

    async def run(self) -> worker_pb2.Finished:
        """Do everything, and say how it ended. Raises only CancelledError, after all processes are dead."""
        finished = worker_pb2.Finished(lease_id=self._lease.lease_id, epoch=self._lease.epoch)
        try:
            await self._run(finished)
        except StatusError as failure:
            finished.status.CopyFrom(failure.to_proto())
        except WorkerFault as failure:
            _log.warning("lease failed here", lease=self._lease.lease_id, failure=str(failure))
            if isinstance(failure, DiskFull):
                self._context.kept.drop_all()
            fail(finished, failure)
        except OSError as failure:
            # Only what the worker itself did: faults of outputs and commands are StatusErrors by now.
            if failure.errno in _DISK_FULL:
                _log.warning("the disk is full", lease=self._lease.lease_id, failure=str(failure))
                self._context.kept.drop_all()
                fail(finished, DiskFull(f"the worker's disk is full: {failure.strerror}"))
            else:
                _log.exception("lease failed here", lease=self._lease.lease_id)
                fail(finished, WorkerFault(f"the worker failed: {failure}"))
        return finished

    async def _run(self, finished: worker_pb2.Finished) -> None:
        context, lease = self._context, self._lease
        self._stamp(self._metadata.worker_start_timestamp)
        function = function_for(lease.digest_function)
        input_root = Digest.from_proto(lease.action.input_root_digest, function)
        require_known_names(lease.command.output_node_properties)
        store = context.store_of(lease.instance_name)
        self._begin(worker_pb2.Progress.FETCHING, self._metadata.input_fetch_start_timestamp)
        inputs = await self._reached(lambda: self._load(store, input_root))
        with await self._reached(lambda: context.files.hold_directories(inputs.listings, store)) as hold:
            self._begin(worker_pb2.Progress.LAYING_OUT)
            room, layout = await self._laid_out(inputs, hold)
            leave = context.workspace.discard
            try:
                self._stamp(self._metadata.input_fetch_completed_timestamp)
                hold.forget()
                if hold.touched:
                    raise WorkerFault(f"{len(hold.touched)} input files were changed before the action began")
                if await self._run_in(room, inputs, hold, store, input_root.function, finished):
                    leave = partial(context.kept.keep, layout=layout)
            except Unkillable as failure:
                leave = context.workspace.abandon
                raise WorkerFault(str(failure)) from failure
            finally:
                self._log.ended()
                leave(room)

    async def _laid_out(self, inputs: Inputs, hold: Hold) -> tuple[Room, Layout | None]:
        """A room with the input root, made from an earlier one if there is one that is much like it."""
        context, lease = self._context, self._lease
        copied = lease.action_digest.hash in context.rewriters
        kept = None if copied else context.kept.take(hold.bundles)
        if kept is not None:
            room, before = kept
            try:
                return room, await self._lay_out(room, inputs, hold, before)
            except (OSError, CannotReuse) as reason:
                # What the action before did to it. Should it be something else, it will be told below.
                _log.info("input root is made anew", lease=lease.lease_id, reason=str(reason)[:300])
        return (room := context.workspace.room()), await self._lay_out(room, inputs, hold, None, copied=copied)

    async def _lay_out(
        self, room: Room, inputs: Inputs, hold: Hold, before: Layout | None, *, copied: bool = False
    ) -> Layout | None:
        context, command = self._context, self._lease.command

        def layout() -> Layout | None:
            files, scrap = context.files.files, context.workspace.scrap
            made = lay_out(inputs, command, room.root, files, hold.bundles, before, scrap, copied=copied)
            hold.look()
            return made

        try:
            return await to_the_end(asyncio.to_thread(layout))
        except BaseException:
            context.workspace.discard(room)
            raise

    async def _reached(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Read from the store. Raises InputsMissing and what else is wrong with the action, WorkerFault for the rest.

        As long as the scheduler is not reached either there is nobody to hand the lease back to, so it is tried again.
        """
        try:
            return await self._context.outage.outlast("inputs", attempt, lambda: not self._context.attached())
        except (InputsMissing, InputsTooLarge):
            raise
        except MalformedRequest as failure:
            if isinstance(failure, DigestMismatch):  # the store gave wrong bytes, which is not the client's fault
                raise WorkerFault(f"cannot fetch inputs: {failure}") from failure
            raise
        except StatusError as failure:
            raise WorkerFault(f"cannot fetch inputs: {failure}") from failure

    async def _load(self, store: BlobStore, root: Digest) -> Inputs:
        """The input root, its directories in memory. Raises InputsMissing with files too, if directories are missing."""
        tree = await load_tree(store, root, self._context.directories)
        if tree.missing:
            files = [digest for digest in tree.file_digests() if digest.size_bytes]
            absent = await store.find_missing(files) if files else set()
            raise InputsMissing(sorted(absent | tree.missing, key=lambda digest: digest.hash))
        return inputs_of(tree, self._context.listings)

    async def _run_in(
        self,
        room: Room,
        inputs: Inputs,
        hold: Hold,
        store: BlobStore,
        function: DigestFunction,
        finished: worker_pb2.Finished,
    ) -> bool:
        """Run the command and tell of it. Returns whether the input root may be kept for another action."""
        context, lease = self._context, self._lease
        platform = platform_of(lease.action, lease.command)
        confinable = Confinable(lease.command, platform, room, inputs, context.settings.environment)
        timeout_seconds = lease.timeout.ToNanoseconds() / 1e9
        max_bytes = context.settings.stdout_max_bytes
        async with context.slots.taken(slots_of(lease)):
            with (
                context.isolation.confine(confinable) as confined,
                # What was captured stays when they are closed.
                closing(CapturedStream(f"{room.path}/stdout", max_bytes)) as stdout,
                closing(CapturedStream(f"{room.path}/stderr", max_bytes)) as stderr,
            ):
                self._log.began(stdout, stderr)
                self._begin(worker_pb2.Progress.RUNNING, self._metadata.execution_start_timestamp)
                try:
                    ended = await context.runner.run(
                        confined, room.path, stdout, stderr, timeout_seconds, self._memory_share_bytes()
                    )
                except BaseException as failure:
                    if isinstance(failure, OSError):
                        finished.action_result.CopyFrom(evidence_of(stdout, stderr))
                    # A command that is cancelled has run as well.
                    await to_the_end(asyncio.to_thread(hold.look))
                    hold.forget()
                    raise
        self._stamp(self._metadata.execution_completed_timestamp)
        self._metadata.virtual_execution_duration.FromNanoseconds(round(ended.wall_seconds * 1e9))
        self._begin(worker_pb2.Progress.COLLECTING)

        def gather() -> tuple[Outputs | FailedPrecondition | MalformedRequest, list[Digest]]:
            hold.look()
            streams = [digest_of_stream(stream, function) for stream in (stdout, stderr)]
            limits = context.settings.output_max_bytes, context.settings.output_max_files
            try:
                return collect(lease.command, room.root, function, *limits), streams
            except (FailedPrecondition, MalformedRequest) as failure:
                # The streams are worth having all the more.
                return failure, streams

        try:
            outputs, stream_digests = await to_the_end(asyncio.to_thread(gather))
        finally:
            spoilt_files = hold.forget()
        if hold.touched:
            _log.warning("an action changed its inputs", lease=lease.lease_id, files=len(hold.touched))
        if spoilt_files:
            context.note_rewriter(lease.action_digest.hash)
            raise WorkerFault(
                f"{spoilt_files} input files were changed by this action or another that was using them too"
            )
        try:
            self._require_own_fault(ended)
        except DiskFull:
            finished.action_result.CopyFrom(evidence_of(stdout, stderr, ended.exit_code))
            raise
        self._begin(worker_pb2.Progress.UPLOADING, self._metadata.output_upload_start_timestamp)
        result = outputs.result if isinstance(outputs, Outputs) else re_pb2.ActionResult()
        result.exit_code = ended.exit_code
        sources: dict[Digest, Source] = {}
        for stream, digest, name in ((stdout, stream_digests[0], "stdout"), (stderr, stream_digests[1], "stderr")):
            if digest.size_bytes:
                getattr(result, f"{name}_digest").CopyFrom(digest.to_proto())
                sources[digest] = stream.spill_path if stream.spilled else stream.kept
        if isinstance(outputs, Outputs):
            sources.update((file.digest, file.path) for file in outputs.files.values())
            sources.update(outputs.messages)
        try:
            pauses = context.full_store_pauses_seconds
            await context.outage.outlast("outputs", lambda: upload(sources, store, pauses))
        except NotKept as refusal:
            name = name_of(refusal.digest, result, outputs, room.root)
            _log.info("the store has no room for an output", lease=lease.lease_id, output=name, reason=str(refusal))
            finished.action_result.CopyFrom(evidence_of(stdout, stderr, ended.exit_code))
            self._complete(finished.action_result, ended, confined)
            finished.message = f"{name} of {refusal.digest.size_bytes} bytes cannot be kept: {refusal}"
            finished.status.CopyFrom(FailedPrecondition(finished.message).to_proto())
            return False
        except StatusError as failure:
            raise WorkerFault(f"cannot upload outputs: {failure}") from failure
        self._stamp(self._metadata.output_upload_completed_timestamp)
        if isinstance(outputs, Outputs):
            kept = [
                (FileKey(file.digest, file.is_executable), file.path)
                for file in outputs.files.values()
                if file.digest.size_bytes and not file.is_shared
            ]
            await context.files.take(kept)
        self._stamp(self._metadata.worker_completed_timestamp)
        self._complete(result, ended, confined)
        finished.action_result.CopyFrom(result)
        finished.message = "; ".join(filter(None, (message_of(ended, stdout, stderr), confined.remark())))
        if ended.excess is not None:
            # Not RESOURCE_EXHAUSTED, after which clients send the action again: it would take as much as before.
            finished.status.CopyFrom(FailedPrecondition(ended.excess.message).to_proto())
            finished.exceeded_memory_bytes = ended.excess.memory_bytes
        elif not isinstance(outputs, Outputs):
            finished.status.CopyFrom(outputs.to_proto())
        elif ended.timed_out:
            finished.status.CopyFrom(
                ActionTimedOut(f"the command ran for longer than {timeout_seconds:g} s").to_proto()
            )
        return not hold.touched

    def _memory_share_bytes(self) -> int:
        """What it asked for or was given, or else what its slots stand for."""
        demand, context = self._lease.demand, self._context
        return demand.memory_bytes or context.settings.memory_share_bytes(slots_of(self._lease), context.memory_bytes)

    def _require_own_fault(self, ended: Exit) -> None:
        """Raises WorkerFault if the command did not fail by itself (behaviour: never a result with 137 or 143)."""
        if ended.timed_out or ended.exit_code == 0:
            return
        if ended.excess is not None:
            if not ended.excess.is_own_fault:
                raise WorkerFault(ended.excess.message)
            self._context.oom.look()  # a kill in the action's own control group is no reason for others to be retried
            return
        if ended.signal_number in (signal.SIGKILL, signal.SIGTERM):
            # This agent sent none: it was the kernel for want of memory, a daemon that does the same earlier, or whoever
            # stops the machine.
            raise WorkerFault(f"the command was {ended.message} from outside the action")
        if self._context.leaving() and ended.exit_code in (128 + signal.SIGTERM, 128 + signal.SIGKILL):
            raise WorkerFault(f"the command ended with {ended.exit_code} while the worker was being stopped")
        if self._context.oom.look():
            raise WorkerFault(
                f"the kernel killed a process for want of memory while the command ran (exit code {ended.exit_code}, "
                f"the most memory seen {ended.usage.peak_memory_bytes >> 20} MiB)"
            )
        if self._context.workspace.free_bytes() < _LEAST_FREE_BYTES:
            raise DiskFull(f"the worker's disk was full when the command ended with {ended.exit_code}")

    def _complete(self, result: re_pb2.ActionResult, ended: Exit, confined: Confined) -> None:
        """Give the result its metadata. What the command used is only in there: every Progress goes to every client."""
        result.execution_metadata.CopyFrom(self._metadata)
        for message in (ended.usage.to_proto(), *confined.findings()):
            result.execution_metadata.auxiliary_metadata.add().Pack(message)

    def _begin(self, phase: worker_pb2.Progress.Phase, timestamp: timestamp_pb2.Timestamp | None = None) -> None:
        if timestamp is not None:
            self._stamp(timestamp)
        self._progress(phase, self._metadata)

    def _stamp(self, timestamp: timestamp_pb2.Timestamp) -> None:
        timestamp.FromNanoseconds(self._context.wall_clock_ns())
