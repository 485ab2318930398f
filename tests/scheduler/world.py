"""The whole scheduler in one process without gRPC: stores in memory, a clock that a test moves, workers that follow a script."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from itertools import count
from typing import Self

from google.longrunning import operations_pb2
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2

from cas.action_cache import ActionCache, ActionKey, Complete, MemoryActionCache
from cas.context import ANYONE, Identity, RequestContext
from cas.digest import Digest
from cas.errors import BlobNotFound, Code, StatusError
from cas.instances import Instance, Instances
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.admission import Admission
from rexec.scheduler.broker import Broker
from rexec.scheduler.execution import ExecutionService
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.journal import Journal
from rexec.scheduler.observer import Unobserved
from rexec.scheduler.operations import OperationsService
from rexec.scheduler.results import Results
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.workers import WorkersService

GUARD_SECONDS = 10
"""What hangs fails the test instead of the whole run. Nothing is measured with it."""

OUTPUTS = ("out", "partial", "a", "b")
"""What the actions of the tests may make."""

Properties = Iterable[tuple[str, str]]


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 5000.0
        self._timers: list[tuple[float, int, HandTimer]] = []
        self._set = asyncio.Event()
        self._serial = count()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1_700_000_000.0 + self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> HandTimer:
        timer = HandTimer(callback)
        self._set.set()
        heapq.heappush(self._timers, (when, next(self._serial), timer))
        return timer

    async def timer_set(self) -> None:
        """Until somebody sets a timer: who was about to wait then does."""
        self._set.clear()
        async with asyncio.timeout(GUARD_SECONDS):
            await self._set.wait()

    def advance(self, seconds: float) -> None:
        """Let time pass and make the calls that become due, in order."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            when, _serial, timer = heapq.heappop(self._timers)
            self.now = max(self.now, when)
            if not timer.cancelled:
                timer.callback()
        self.now = end


class HandTimer:
    """A call that a HandClock will make."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Counts(Unobserved):
    """What an Observer was told."""

    def __init__(self) -> None:
        self.results: list[str] = []
        self.retries: list[bool] = []
        self.reads: list[str] = []

    def execution_finished(self, result: str, seconds: float) -> None:
        self.results.append(result)

    def task_retried(self, counted: bool) -> None:
        self.retries.append(counted)

    def action_cache_read(self, outcome: str) -> None:
        self.reads.append(outcome)


class EvictingStore:
    """A MemoryStore that can be made to have lost blobs."""

    def __init__(self) -> None:
        self._inner = MemoryStore()
        self.evicted: set[Digest] = set()
        self.asked: list[set[Digest]] = []
        """What each find_missing asked for."""

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        wanted = set(digests)
        self.asked.append(wanted)
        return await self._inner.find_missing(wanted) | (wanted & self.evicted)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return await self._inner.read_many([digest for digest in digests if digest not in self.evicted])

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        self.evicted -= {digest for digest, _data in blobs}
        return await self._inner.write_many(blobs)

    def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        if digest in self.evicted:
            raise BlobNotFound(digest)
        return self._inner.open(digest, offset, limit)

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        self.evicted.discard(digest)
        await self._inner.put(digest, chunks)


class World:
    """A server without its edge. Instances: "main" and ""."""

    def __init__(
        self,
        settings: SchedulerSettings | None = None,
        action_cache: ActionCache | None = None,
        *,
        journal: Journal | None = None,
        store: EvictingStore | None = None,
    ) -> None:
        """`store` and `action_cache` are those of an earlier world, which this one is the restart of."""
        self.settings = settings or SchedulerSettings()
        self.clock = HandClock()
        self.store = store or EvictingStore()
        self.kept: ActionCache = action_cache or MemoryActionCache()
        self.instances = Instances(
            Instance(name, self.store, Complete(self.kept, self.store)) for name in ("main", "")
        )  # fmt: skip
        self.counts = Counts()
        self.inputs = InputRoots(self.settings, self.clock)
        self.broker = Broker(
            self.settings,
            Results(self.instances, self.inputs, self.clock),
            clock=self.clock,
            observer=self.counts,
            journal=journal,
        )
        admission = Admission(self.settings, self.inputs, self.clock)
        self.execution = ExecutionService(
            self.instances, self.broker, admission, self.settings, observer=self.counts
        )  # fmt: skip
        self.operations = OperationsService(self.instances, self.broker, self.settings, self.clock)
        self.workers = WorkersService(self.broker)
        self._stopped = False
        self._open: list[AsyncGenerator[object, None]] = []

    async def __aenter__(self) -> Self:
        await self.broker.__aenter__()
        return self

    async def __aexit__(self, *_failure: object) -> None:
        await self.stop()
        for stream in self._open:
            await stream.aclose()

    async def stop(self) -> None:
        """Stop the scheduler. Harmless the second time."""
        if not self._stopped:
            self._stopped = True
            await self.broker.__aexit__(None, None, None)

    # Blobs

    async def upload(self, data: bytes) -> Digest:
        digest = Digest.of(data)
        assert not await self.store.write_many([(digest, data)])
        return digest

    async def root(self, files: Mapping[str, bytes], *, upload: bool = True) -> Digest:
        """The Directory that holds `files`, by path; uploaded with all it holds unless told otherwise."""
        directory = re_pb2.Directory()
        children: dict[str, dict[str, bytes]] = {}
        for path, data in sorted(files.items()):
            name, slash, rest = path.partition("/")
            if slash:
                children.setdefault(name, {})[rest] = data
            else:
                digest = await self.upload(data) if upload else Digest.of(data)
                directory.files.add(name=name, digest=digest.to_proto())
        for name, held in children.items():
            digest = await self.root({path: data for path, data in held.items() if path}, upload=upload)
            directory.directories.add(name=name, digest=digest.to_proto())
        encoded = directory.SerializeToString()
        return await self.upload(encoded) if upload else Digest.of(encoded)

    async def action(
        self,
        *arguments: str,
        root: Digest | None = None,
        platform: Properties = (),
        command_platform: Properties = (),
        do_not_cache: bool = False,
        timeout_seconds: float | None = None,
        working_directory: str = "",
        output_paths: Sequence[str] | None = None,
        output_files: Sequence[str] = (),
        upload: bool = True,
        upload_command: bool = True,
    ) -> Digest:
        """An Action with its Command in the store; unless told otherwise its outputs are OUTPUTS."""
        if output_paths is None:
            output_paths = () if output_files else OUTPUTS
        command = re_pb2.Command(
            arguments=arguments or ["true"],
            working_directory=working_directory,
            output_paths=output_paths,
            output_files=output_files,
        )
        command.platform.properties.extend(_properties(command_platform))
        encoded = command.SerializeToString()
        action = re_pb2.Action(
            command_digest=Digest.of(encoded).to_proto(),
            input_root_digest=(root or Digest.of(b"")).to_proto(),
            do_not_cache=do_not_cache,
        )
        action.platform.properties.extend(_properties(platform))
        if timeout_seconds is not None:
            duration = duration_pb2.Duration()
            duration.FromMilliseconds(round(timeout_seconds * 1000))
            action.timeout.CopyFrom(duration)
        if upload_command:
            await self.upload(encoded)
        return await self.upload(action.SerializeToString()) if upload else Digest.of(action.SerializeToString())

    async def cached(self, action: Digest, instance_name: str = "main") -> re_pb2.ActionResult:
        """What the action cache has. Raises ActionResultNotFound."""
        return await self.kept.get(ActionKey(instance_name, action))

    # Clients

    def execute(
        self,
        action: Digest,
        *,
        instance_name: str = "main",
        identity: Identity = ANYONE,
        priority: int = 0,
        skip_cache_lookup: bool = False,
        inline_stdout: bool = False,
        inline_output_files: Sequence[str] = (),
    ) -> Stream:
        request = re_pb2.ExecuteRequest(
            instance_name=instance_name,
            action_digest=action.to_proto(),
            skip_cache_lookup=skip_cache_lookup,
            inline_stdout=inline_stdout,
            inline_output_files=inline_output_files,
        )
        request.execution_policy.priority = priority
        return self._stream(self.execution.Execute(request, RequestContext(identity=identity)))

    def wait(self, name: str, identity: Identity = ANYONE) -> Stream:
        request = re_pb2.WaitExecutionRequest(name=name)
        return self._stream(self.execution.WaitExecution(request, RequestContext(identity=identity)))

    def _stream(self, operations: AsyncGenerator[operations_pb2.Operation, None]) -> Stream:
        self._open.append(operations)
        return Stream(operations)

    async def cancel(self, name: str) -> None:
        await self.operations.CancelOperation(operations_pb2.CancelOperationRequest(name=name), RequestContext())

    async def get(self, name: str) -> operations_pb2.Operation:
        return await self.operations.GetOperation(operations_pb2.GetOperationRequest(name=name), RequestContext())

    # Workers

    async def worker(
        self,
        name: str = "w1",
        *,
        session: str = "",
        slots: int = 1,
        credit: int | None = None,
        properties: Properties = (("OSFamily", "linux"),),
        held: Sequence[worker_pb2.Lease] = (),
    ) -> FakeWorker:
        """A worker that has said Hello, got Welcome and granted credit."""
        worker = self.silent_worker()
        worker.say(
            hello=worker_pb2.Hello(
                worker_name=name,
                session_id=session or f"{name}-session",
                slots=slots,
                properties=_properties(properties),
                held=[worker_pb2.HeldLease(lease_id=lease.lease_id, epoch=lease.epoch) for lease in held],
            )
        )
        worker.welcome = (await worker.hear("welcome")).welcome
        worker.say(credit=worker_pb2.Credit(leases=slots if credit is None else credit))
        return worker

    def silent_worker(self) -> FakeWorker:
        """A worker that has only opened its stream."""
        worker = FakeWorker(self)
        self._open.append(worker.stream)
        return worker


class Stream:
    """One Execute or WaitExecution, from the client's side."""

    def __init__(self, operations: AsyncGenerator[operations_pb2.Operation, None]) -> None:
        self._operations = operations
        self.name = ""

    async def next(self) -> operations_pb2.Operation:
        async with asyncio.timeout(GUARD_SECONDS):
            operation = await anext(self._operations)
        self.name = operation.name
        assert operation.WhichOneof("result") != "error"  # behaviour 5, for every operation that any test sees
        assert operation.done == (stage_of(operation) == re_pb2.ExecutionStage.COMPLETED)  # behaviour 6
        return operation

    async def until(self, stage: re_pb2.ExecutionStage.Value) -> operations_pb2.Operation:
        """The first Operation in that stage."""
        while stage_of(operation := await self.next()) != stage:
            pass
        return operation

    async def response(self) -> re_pb2.ExecuteResponse:
        """What the completed Operation carries; the stream must end after it."""
        operation = await self.until(re_pb2.ExecutionStage.COMPLETED)
        async with asyncio.timeout(GUARD_SECONDS):
            assert await anext(self._operations, None) is None
        return response_of(operation)

    async def close(self) -> None:
        """Go away, as a client whose connection broke."""
        await self._operations.aclose()


def parts_of(message: worker_pb2.ToWorker) -> list[worker_pb2.ToWorker]:
    """The messages that travel as this one."""
    first = worker_pb2.ToWorker.FromString(message.SerializeToString())
    first.ClearField("also")
    return [first, *message.also]


class FakeWorker:
    """The worker's end of an Attach stream, following the test's script."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._said: asyncio.Queue[worker_pb2.FromWorker | None] = asyncio.Queue()
        self.stream = world.workers.Attach(self._requests(), RequestContext(peer="fake"))
        self._parts: deque[worker_pb2.ToWorker] = deque()
        self.welcome = worker_pb2.Welcome()

    async def _requests(self) -> AsyncIterator[worker_pb2.FromWorker]:
        while (message := await self._said.get()) is not None:
            yield message

    def say(
        self,
        *,
        hello: worker_pb2.Hello | None = None,
        credit: worker_pb2.Credit | None = None,
        progress: worker_pb2.Progress | None = None,
        finished: worker_pb2.Finished | None = None,
        heartbeat: worker_pb2.Heartbeat | None = None,
        draining: worker_pb2.Draining | None = None,
        log: worker_pb2.LogPiece | None = None,
        also: Iterable[worker_pb2.FromWorker] = (),
    ) -> None:
        self._said.put_nowait(
            worker_pb2.FromWorker(
                hello=hello,
                credit=credit,
                progress=progress,
                finished=finished,
                heartbeat=heartbeat,
                draining=draining,
                log=log,
                also=also,
            )
        )

    def end(self) -> None:
        """Close the worker's half of the stream."""
        self._said.put_nowait(None)

    async def hear(self, kind: str) -> worker_pb2.ToWorker:
        """The next message, which must be of that kind."""
        message = await self._any()
        assert message.WhichOneof("message") == kind
        return message

    async def lease(self) -> worker_pb2.Lease:
        return (await self.hear("lease")).lease

    def running(self, lease: worker_pb2.Lease) -> None:
        self.say(
            progress=worker_pb2.Progress(
                lease_id=lease.lease_id, epoch=lease.epoch, phase=worker_pb2.Progress.RUNNING
            )
        )  # fmt: skip

    async def heard(self) -> None:
        """Until the scheduler has heard all that was said so far: it answers what comes last, which makes no sense."""
        self.running(worker_pb2.Lease(lease_id="unheard of", epoch=1))
        assert (await self.hear("revoke")).revoke.lease_id == "unheard of"

    async def finish(
        self,
        lease: worker_pb2.Lease,
        *,
        exit_code: int = 0,
        stdout: bytes = b"",
        files: Mapping[str, bytes] | None = None,
        upload: bool = True,
        status: status_pb2.Status | None = None,
        failure: worker_pb2.Finished.Failure = worker_pb2.Finished.NONE,
        result: bool = True,
        message: str = "",
        credit: int = 1,
    ) -> None:
        """Upload outputs, report them, take more work, and hear that the lease may be forgotten."""
        action_result = re_pb2.ActionResult(exit_code=exit_code)
        blobs = [(path, data, Digest.of(data)) for path, data in (files or {}).items()]
        for path, data, digest in blobs:
            if upload:
                await self._world.upload(data)
            action_result.output_files.add(path=path, digest=digest.to_proto())
        if stdout:
            action_result.stdout_digest.CopyFrom((await self._world.upload(stdout)).to_proto())
        self.say(
            finished=worker_pb2.Finished(
                lease_id=lease.lease_id,
                epoch=lease.epoch,
                action_result=action_result if result else None,
                status=status,
                failure=failure,
                message=message,
            )
        )
        while (await self._any()).WhichOneof("message") != "acknowledged":
            pass
        if credit:
            self.say(credit=worker_pb2.Credit(leases=credit))

    async def _any(self) -> worker_pb2.ToWorker:
        if not self._parts:
            async with asyncio.timeout(GUARD_SECONDS):
                self._parts.extend(parts_of(await anext(self.stream)))
        return self._parts.popleft()

    async def vanish(self) -> None:
        """The connection breaks."""
        await self.stream.aclose()


def _properties(properties: Properties) -> list[re_pb2.Platform.Property]:
    return [re_pb2.Platform.Property(name=name, value=value) for name, value in properties]


def metadata_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteOperationMetadata:
    metadata = re_pb2.ExecuteOperationMetadata()
    assert operation.metadata.Unpack(metadata)
    return metadata


def stage_of(operation: operations_pb2.Operation) -> re_pb2.ExecutionStage.Value:
    return metadata_of(operation).stage


def response_of(operation: operations_pb2.Operation) -> re_pb2.ExecuteResponse:
    response = re_pb2.ExecuteResponse()
    assert operation.response.Unpack(response)
    return response


def violations_of(status: status_pb2.Status) -> list[tuple[str, str]]:
    """(type, subject) of every violation of the one PreconditionFailure in a FAILED_PRECONDITION status."""
    assert status.code == Code.FAILED_PRECONDITION
    (detail,) = status.details
    failure = error_details_pb2.PreconditionFailure()
    assert detail.Unpack(failure)
    return [(violation.type, violation.subject) for violation in failure.violations]
