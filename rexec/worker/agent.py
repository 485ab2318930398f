"""The worker agent: attached to the scheduler by one stream, running the leases that come down it.

The stream may break at any time and nothing else stops because of it: commands run on, results are kept until they are
acknowledged, and the next stream begins with the list of what is held. Only the scheduler ends a lease early (Revoke,
Welcome.unknown), or the agent when it has to leave.

Leaving (`drain`): no new leases; those whose command has not started are handed back at once, and so are those of which the
scheduler knows that they would outlast the grace; other commands that run may end within it, what is left then is killed and
handed back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable

import structlog

from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker import letters
from rexec.worker.action import ActionContext, LeasedAction, slots_of
from rexec.worker.condition import Condition
from rexec.worker.held_leases import HeldLease, HeldLeases, LeaseKey
from rexec.worker.link import Dial, Link, LinkBroken, Refused, first_of
from rexec.worker.live_log import LeaseLog
from rexec.worker.observer import Unobserved, WorkerObserver, WorkerState
from rexec.worker.present_stream import PresentStream
from rexec.worker.reconnect import Reconnect
from rexec.worker.trouble import Trouble

_log = structlog.get_logger()

ACKNOWLEDGE_SECONDS = 2.0
"""How long a leaving agent waits for the scheduler to take note of what it handed back."""

WELCOME_SECONDS = 10.0
"""How long a scheduler may take to answer Hello; one that hangs is not waited for when another may have taken over."""

_DEFAULT_HEARTBEAT_SECONDS = 5.0


class Agent:
    """One worker. `run` returns when it has drained."""

    def __init__(
        self, context: ActionContext, dial: Dial, session_id: str, observer: WorkerObserver | None = None
    ) -> None:
        self._context = context
        self._observer: WorkerObserver = observer or Unobserved()
        self._settings = context.settings
        self._dial = dial
        self._session_id = session_id
        self._resources = self._settings.offered_resources()
        self._leases = HeldLeases(self._settings.slots, self._settings.prefetch_leases)
        self._stream = PresentStream()
        self._paused = False
        self._condition = Condition(context)
        self._draining = ""
        """Why, once it is."""
        self._leaves_at = math.inf
        """When it leaves at the latest, by the event loop's clock."""
        self._gone = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._reconnect = Reconnect(self._settings)
        self._trouble = Trouble()
        context.leaving = lambda: bool(self._draining)
        context.attached = lambda: self.is_attached
        self._observer.watch(self.state)

    @property
    def is_attached(self) -> bool:
        """Whether the scheduler has welcomed the present stream."""
        return self._stream.is_attached

    def state(self) -> WorkerState:
        """For metrics and displays."""
        return WorkerState(
            slots=self._settings.slots,
            leases=self._leases.by_phase(),
            cache_bytes=self._context.files.used_bytes,
            is_attached=self.is_attached,
            draining=self._draining,
        )

    async def run(self) -> None:
        """Stay attached and run leases until drained. Cancelling it kills all actions."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            connection = group.create_task(self._stay_attached())
            try:
                await self._gone.wait()
                await self._stream.take_leave(connection)
            finally:
                connection.cancel()
        _log.info("worker has left", reason=self._draining)

    def drain(self, reason: str, grace_seconds: float, hand_back: Iterable[LeaseKey] = ()) -> None:
        """Leave: at once if nothing runs, after `grace_seconds` at the latest. For those of `hand_back` it does not wait. A
        second call may shorten the grace, which is told to the scheduler, who may know what would outlast it."""
        leaves_at = asyncio.get_running_loop().time() + grace_seconds
        is_first, self._draining = not self._draining, self._draining or reason
        if leaves_at < self._leaves_at:
            _log.info("worker is leaving", reason=reason, grace_seconds=grace_seconds, leases=len(self._leases))
            self._leaves_at = leaves_at
            self._send_draining()
            asyncio.get_running_loop().call_later(grace_seconds, self._hand_back, reason)
        if is_first:
            self._grant()
            for held in self._leases:
                if held.phase < worker_pb2.Progress.RUNNING:
                    self._stop(held, worker_pb2.Finished.BACK_PRESSURE, reason)
        for key in hand_back:
            wanted = self._leases.get(key)
            if wanted is not None:
                self._stop(wanted, worker_pb2.Finished.BACK_PRESSURE, f"{reason}; the command would not end in time")
        self._leave_if_done()

    def _send_draining(self) -> None:
        left_seconds = self._leaves_at - asyncio.get_running_loop().time()
        self._stream.send(letters.draining(self._draining, left_seconds))

    def _hand_back(self, reason: str) -> None:
        for held in self._leases:
            self._stop(held, worker_pb2.Finished.BACK_PRESSURE, f"{reason}; the command did not end in time")
        # Long enough for the kills too; whoever does not answer will learn it from the end of the stream.
        asyncio.get_running_loop().call_later(ACKNOWLEDGE_SECONDS, self._gone.set)
        self._leave_if_done()

    def _leave_if_done(self) -> None:
        if self._draining and not self._leases:
            self._gone.set()

    async def _stay_attached(self) -> None:
        while True:
            refused = False
            try:
                async with self._dial() as link:
                    self._stream.opened(link)
                    await self._attached(link)
            except* LinkBroken as group:
                broken = first_of(group)
                news = self._trouble.news(broken, asyncio.get_running_loop().time())
                if news and not self._gone.is_set():
                    _log.warning(news, reason=str(broken), held=len(self._leases))
                refused = isinstance(broken, Refused)
            finally:
                self._stream.closed()
                for held in self._leases:
                    held.log.forget_readers()
            if self._gone.is_set() or _is_being_cancelled():
                return  # in order, the scheduler has heard all; or a link that broke at that moment hid the cancellation
            await asyncio.sleep(self._reconnect.pause_seconds(refused=refused))

    async def _attached(self, link: Link) -> None:
        """Serve one stream until it breaks: raises LinkBroken, alone or in a group."""
        await link.send(self.hello())
        try:
            async with asyncio.timeout(WELCOME_SECONDS):
                first = await link.receive()
        except TimeoutError:
            raise LinkBroken(f"no welcome within {WELCOME_SECONDS:g} s") from None
        if first.WhichOneof("message") != "welcome":
            raise LinkBroken(f"the first message is {first.WhichOneof('message')}, expected welcome")
        welcome = first.welcome
        self._reconnect.attached()
        self._trouble.over()
        self._stream.welcomed()
        _log.info("attached to the scheduler", worker_id=welcome.worker_id, held=len(self._leases))
        for unknown in welcome.unknown:
            held = self._leases.get(LeaseKey(unknown.lease_id, unknown.epoch))
            if held is not None:
                self._forget(held, "the scheduler gave it to another worker")
        for held in self._leases:
            if held.finished is not None:
                self._stream.send(worker_pb2.FromWorker(finished=held.finished))
            elif held.phase != worker_pb2.Progress.PHASE_UNSPECIFIED:
                # Not in Hello, and what was said of it before may have been lost with the stream or the scheduler.
                self._stream.send(letters.progress(held))
        if self._draining:
            self._send_draining()
        self._grant()
        interval = welcome.heartbeat_interval.ToMilliseconds() / 1000 or _DEFAULT_HEARTBEAT_SECONDS
        async with asyncio.TaskGroup() as group:
            group.create_task(self._stream.send_all())
            group.create_task(self._beat(interval))
            while True:
                message = await link.receive()
                self._take(message)
                for another in message.also:
                    self._take(another)

    def hello(self) -> worker_pb2.FromWorker:
        """What it says first on a stream."""
        return letters.hello(self._context, self._session_id, self._resources, self._leases)

    def _take(self, message: worker_pb2.ToWorker) -> None:
        """One message from the scheduler."""
        match message.WhichOneof("message"):
            case "lease":
                self._stream.lease_came()
                self._start(message.lease)
            case "revoke":
                revoke = message.revoke
                held = self._leases.get(LeaseKey(revoke.lease_id, revoke.epoch))
                if held is not None:
                    self._stop(held, worker_pb2.Finished.REVOKED, revoke.reason)
                else:
                    self._refuse(revoke.lease_id, revoke.epoch, worker_pb2.Finished.REVOKED, "not held here")
            case "acknowledged":
                key = LeaseKey(message.acknowledged.lease_id, message.acknowledged.epoch)
                held = self._leases.get(key)
                if held is not None:
                    self._forget(held, "acknowledged")
            case "drain":
                drain = message.drain
                hand_back = [LeaseKey(lease.lease_id, lease.epoch) for lease in drain.hand_back]
                self.drain(drain.reason or "the scheduler said so", drain.grace.ToMilliseconds() / 1000, hand_back)
            case "read_log":
                held = self._leases.get(LeaseKey(message.read_log.lease_id, message.read_log.epoch))
                if held is not None:
                    held.log.ask(message.read_log)
            case _:
                pass  # something that a newer scheduler says

    def _start(self, lease: worker_pb2.Lease) -> None:
        key = LeaseKey(lease.lease_id, lease.epoch)
        if self._leases.get(key) is not None:
            return
        if self._draining:
            self._refuse(lease.lease_id, lease.epoch, worker_pb2.Finished.BACK_PRESSURE, self._draining)
            return
        too_much = self._too_much(lease.demand)
        if too_much:
            self._refuse(lease.lease_id, lease.epoch, worker_pb2.Finished.BACK_PRESSURE, too_much)
            self._paused = True  # until the next heartbeat: it would come straight back
            self._grant()
            return
        assert self._group is not None, "run() makes the group before it connects"
        log = LeaseLog(lambda piece: self._stream.send(worker_pb2.FromWorker(log=piece)), *key)
        held = self._leases.add(key, log, slots_of(lease))
        held.task = self._group.create_task(self._perform(held, lease))

    def _too_much(self, demand: record_pb2.Demand) -> str:
        """What of the demand this worker could not even give to one action that had it for itself; "" if nothing."""
        for wanted, there, unit in (
            (demand.slots, self._settings.slots, "slots"),
            (demand.cpu_millis, self._resources["cpu"], "thousandths of a core"),
            (demand.memory_bytes, self._resources.get("memory", demand.memory_bytes), "bytes of memory"),
        ):
            if wanted > there:
                return f"the lease takes {wanted} {unit}, this worker has {there}"
        return ""

    async def _perform(self, held: HeldLease, lease: worker_pb2.Lease) -> None:
        """Run one lease to its end, whatever happens."""

        def progress(phase: worker_pb2.Progress.Phase, metadata: re_pb2.ExecutedActionMetadata) -> None:
            self._leave_phase(held)
            held.phase, held.metadata = phase, metadata
            self._stream.send(letters.progress(held))
            self._grant()

        try:
            finished = await LeasedAction(self._context, lease, progress, held.log).run()
        except asyncio.CancelledError:
            if held.stopping == worker_pb2.Finished.NONE:
                raise  # the agent itself is being stopped
            finished = letters.stopped(lease.lease_id, lease.epoch, held.stopping, held.reason)
        except Exception as failure:  # noqa: BLE001 - one lease must not take the others with it
            _log.exception("lease failed for a reason that was not foreseen", lease=lease.lease_id)
            finished = letters.stopped(
                lease.lease_id, lease.epoch, worker_pb2.Finished.INFRASTRUCTURE, type(failure).__name__
            )
        self._end(held, finished)

    def _leave_phase(self, held: HeldLease) -> None:
        now = asyncio.get_running_loop().time()
        if held.phase != worker_pb2.Progress.PHASE_UNSPECIFIED:
            self._observer.phase_ended(held.phase_name, now - held.phase_began_at)
        held.phase_began_at = now

    def _end(self, held: HeldLease, finished: worker_pb2.Finished) -> None:
        self._leave_phase(held)
        self._observer.lease_ended(worker_pb2.Finished.Failure.Name(finished.failure).lower())
        held.task = None
        held.finished = finished
        if held.is_unwanted:
            self._leases.remove(held)
        else:
            self._stream.send(worker_pb2.FromWorker(finished=finished))
        if finished.failure != worker_pb2.Finished.NONE and finished.status.code == Code.FAILED_PRECONDITION:
            self._paused = True  # until the next heartbeat: the disk is full, and would be for the next lease
        if finished.failure == worker_pb2.Finished.BACK_PRESSURE:
            self._paused = True  # until the next heartbeat: the same lease would come straight back
        self._grant()
        self._leave_if_done()

    def _stop(self, held: HeldLease, failure: worker_pb2.Finished.Failure, reason: str) -> None:
        """Kill it and report why; nothing if it has ended."""
        if held.task is None or held.stopping != worker_pb2.Finished.NONE:
            return
        held.stopping, held.reason = failure, reason
        held.task.cancel()
        if held.phase == worker_pb2.Progress.PHASE_UNSPECIFIED:
            # A task that is cancelled before its first step never runs at all.
            asyncio.get_running_loop().call_soon(self._never_ran, held)

    def _never_ran(self, held: HeldLease) -> None:
        if held.finished is None and held.task is not None and held.task.done():
            self._end(held, letters.stopped(*held.key, held.stopping, held.reason))

    def _forget(self, held: HeldLease, reason: str) -> None:
        """Nobody wants to hear of it any more."""
        held.is_unwanted = True
        if held.task is not None:
            self._stop(held, worker_pb2.Finished.REVOKED, reason)
        else:
            self._leases.remove(held)
        self._leave_if_done()

    def _refuse(self, lease_id: str, epoch: int, failure: worker_pb2.Finished.Failure, reason: str) -> None:
        self._stream.send(worker_pb2.FromWorker(finished=letters.stopped(lease_id, epoch, failure, reason)))

    def _grant(self) -> None:
        """Tell the scheduler how many leases there is room for, if it thinks otherwise."""
        room = 0 if self._draining or self._paused or self._condition.pause_reason else self._leases.room()
        self._stream.grant(room)

    async def _beat(self, interval_seconds: float) -> None:
        while True:
            self._stream.send(worker_pb2.FromWorker(heartbeat=self._condition.look()))
            self._grant()
            await asyncio.sleep(interval_seconds)
            self._paused = False


def _is_being_cancelled() -> bool:
    """Whether the present task was told to end: a TaskGroup that fails raises its failures and not the cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
