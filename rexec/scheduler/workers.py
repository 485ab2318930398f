"""rexec.worker.v1.Workers: one stream for each worker agent, from Hello to its end.

What a worker says is checked here and handed on; what it is told comes out of its outbox. A message that makes no sense
ends the stream with the reason, and the worker's leases are kept for the usual grace. Each stream is read by a task of its
own, because gRPC's two directions are independent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import structlog

from cas.context import Identity, RequestContext
from cas.errors import Internal, MalformedRequest, NotAllowed, StatusError, Unavailable
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import events as e
from rexec.scheduler.broker import Broker
from rexec.scheduler.clock import Timer
from rexec.scheduler.drains import MAX_GRACE_SECONDS
from rexec.scheduler.need import MAX_MEMORY_BYTES
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.packing import MAX_CPU_MILLIS
from rexec.scheduler.permission import allowed_offer
from rexec.scheduler.platform import Offer
from rexec.scheduler.task import HeldLease

log = structlog.get_logger()

MAX_NAME_CHARACTERS = 256
MAX_PROPERTIES = 1000
MAX_PROPERTY_CHARACTERS = 4096
MAX_PROPERTIES_CHARACTERS = 64 << 10
"""Of all names and values together: they are kept for as long as the worker is, in the journal too."""
MAX_TOGETHER = 10_000
"""Messages that a worker may send as one."""
MAX_HELD = 100_000
"""Leases that a worker may claim to hold."""

_Progress = worker_pb2.Progress
_HAS_RUN = frozenset({_Progress.COLLECTING, _Progress.UPLOADING})
"""Phases in which the command has run."""
_RUN = _HAS_RUN | {_Progress.RUNNING}
"""Phases in which the command runs or has run."""

MAX_PARTIAL_METADATA_BYTES = 64 << 10
"""What a worker may say of a run that has not ended: it goes to every client that waits, in every Operation."""


class WorkersService:
    """rexec.worker.v1.Workers."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def Attach(
        self, requests: AsyncIterator[worker_pb2.FromWorker], context: RequestContext
    ) -> AsyncGenerator[worker_pb2.ToWorker, None]:
        """Raises MalformedRequest for nonsense, NotAllowed for one who may not work (for the instances that it names), and
        Unavailable when the worker is silent or has been replaced."""
        if not context.identity.may_work:
            raise NotAllowed("not allowed")
        outbox = Outbox()
        reader = self._broker.spawn(self._read(requests, outbox, context))
        try:
            async with aclosing(outbox.messages()) as messages:
                async for message in messages:
                    yield message
        finally:
            outbox.close()
            reader.cancel()
            self._broker.detach(outbox)

    async def _read(
        self, requests: AsyncIterator[worker_pb2.FromWorker], outbox: Outbox, context: RequestContext
    ) -> None:
        """Hand on what the worker says until it ends its side, then end ours."""
        peer = context.peer
        silence = _Silence(self._broker, outbox)
        attached: e.WorkerAttached | None = None
        try:
            async for message in requests:
                if outbox.closed:
                    return
                silence.broken()
                if attached is None:
                    attached = _attached(message, self._broker.settings.max_slots, context.identity)
                    self._broker.attach(attached, outbox)
                    self._broker.vitals.attached(message.hello, self._broker.clock.monotonic())
                    log.info(
                        "worker attached",
                        worker=attached.name,
                        slots=attached.slots,
                        offers=str(attached.offer),
                        peer=peer,
                    )
                else:
                    self._take(attached.worker_id, attached.slots, message)
                    if len(message.also) > MAX_TOGETHER:
                        raise MalformedRequest(f"{len(message.also)} messages in one, expected at most {MAX_TOGETHER}")
                    for another in message.also:
                        self._take(attached.worker_id, attached.slots, another)
            outbox.close()
        except StatusError as failure:
            outbox.close(failure)  # the edge writes the line
        except Exception:
            log.exception("worker's stream failed", peer=peer)
            outbox.close(Internal())
        finally:
            silence.end()

    def _take(self, worker_id: str, slots: int, message: worker_pb2.FromWorker) -> None:
        """One message after Hello."""
        match message.WhichOneof("message"):
            case "credit":
                credit = message.credit
                if credit.leases < 0:
                    raise MalformedRequest(f"credit of {credit.leases} leases, expected 0 or more")
                most = slots + self._broker.settings.max_prefetched_leases
                received = credit.leases_received if credit.HasField("leases_received") else None
                self._broker.hear(e.Credit(worker_id, min(credit.leases, most), received))
            case "progress":
                progress = message.progress
                detail = progress.partial_metadata if progress.HasField("partial_metadata") else None
                if detail is not None and detail.ByteSize() > MAX_PARTIAL_METADATA_BYTES:
                    raise MalformedRequest(
                        f"progress with {detail.ByteSize()} bytes of metadata, expected at most {MAX_PARTIAL_METADATA_BYTES}"
                    )
                running, delivering = progress.phase in _RUN, progress.phase in _HAS_RUN
                self._broker.hear(
                    e.Progress(worker_id, progress.lease_id, progress.epoch, running, detail, delivering)
                )  # fmt: skip
            case "finished":
                self._broker.report(worker_id, message.finished)
            case "log":
                self._broker.logs.take(worker_id, message.log)
            case "draining":
                said = message.draining
                if self._broker.holds_leases(worker_id):  # else it is gone at once, which is told
                    log.info("worker draining", worker_id=worker_id[:100], reason=said.reason[:200])
                grace = None
                if said.HasField("grace"):
                    # Whatever a hostile one says, the sum of a time and this is a time.
                    grace = min(max(0.0, said.grace.seconds + said.grace.nanos / 1e9), MAX_GRACE_SECONDS)
                self._broker.leaves(worker_id, said.reason[:200], grace)
            case "heartbeat":
                self._broker.vitals.heard(worker_id, message.heartbeat, self._broker.clock.monotonic())
            case "hello":
                raise MalformedRequest("a second hello on the same stream")
            case _:
                pass  # something that a newer worker says


class _Silence:
    """Ends a stream on which nothing has been heard for too long."""

    def __init__(self, broker: Broker, outbox: Outbox) -> None:
        self._clock = broker.clock
        self._settings = broker.settings
        self._outbox = outbox
        self._heard_at = self._clock.monotonic()
        self._timer: Timer = self._clock.call_at(self._heard_at + self._limit_seconds, self._look)

    @property
    def _limit_seconds(self) -> float:
        return self._settings.silence_seconds(self._outbox.heartbeat_seconds)

    def broken(self) -> None:
        """Something was heard. The timer is left alone: it looks when it is due."""
        self._heard_at = self._clock.monotonic()

    def _look(self) -> None:
        due = self._heard_at + self._limit_seconds
        if self._clock.monotonic() >= due:
            self._outbox.close(Unavailable(f"nothing heard for {self._limit_seconds:g} s"))
        else:
            self._timer = self._clock.call_at(due, self._look)

    def end(self) -> None:
        """The stream is over anyway."""
        self._timer.cancel()


def _attached(message: worker_pb2.FromWorker, max_slots: int, identity: Identity) -> e.WorkerAttached:
    """The first message, a checked Hello. Raises MalformedRequest, naming the field, and NotAllowed."""
    if message.WhichOneof("message") != "hello":
        raise MalformedRequest(f"the first message is {message.WhichOneof('message') or 'empty'}, expected hello")
    hello = message.hello
    for field, text in (("worker_name", hello.worker_name), ("session_id", hello.session_id)):
        if not text or len(text) > MAX_NAME_CHARACTERS:
            raise MalformedRequest(f"{field} {text[:50]!r} is empty or longer than {MAX_NAME_CHARACTERS} characters")
    if not 1 <= hello.slots <= max_slots:
        raise MalformedRequest(f"{hello.slots} slots, expected 1 to {max_slots}")
    if len(hello.properties) > MAX_PROPERTIES:
        raise MalformedRequest(f"{len(hello.properties)} properties, expected at most {MAX_PROPERTIES}")
    for offered in hello.properties:
        if not offered.name or len(offered.name) + len(offered.value) > MAX_PROPERTY_CHARACTERS:
            raise MalformedRequest(f"property {offered.name[:50]!r} has no name or is too long")
    together = sum(len(offered.name) + len(offered.value) for offered in hello.properties)
    if together > MAX_PROPERTIES_CHARACTERS:
        raise MalformedRequest(
            f"properties of {together} characters together, expected at most {MAX_PROPERTIES_CHARACTERS}"
        )
    if len(hello.held) > MAX_HELD:
        raise MalformedRequest(f"{len(hello.held)} held leases, expected at most {MAX_HELD}")
    if len(hello.resources) > MAX_PROPERTIES:
        raise MalformedRequest(f"{len(hello.resources)} resources, expected at most {MAX_PROPERTIES}")
    offer = Offer(
        frozenset((p.name, p.value) for p in hello.properties),
        frozenset(hello.instance_names),
        _resource(hello, "cpu", MAX_CPU_MILLIS),
        _resource(hello, "memory", MAX_MEMORY_BYTES),
    )
    held = tuple(HeldLease(lease.lease_id, lease.epoch) for lease in hello.held)
    return e.WorkerAttached(hello.session_id, hello.worker_name, hello.slots, allowed_offer(offer, identity), held)


def _resource(hello: worker_pb2.Hello, name: str, most: int) -> int:
    """What the worker has of it; 0 if it does not say. Others than those we count are left alone."""
    amount = hello.resources.get(name, 0)
    if not 0 <= amount <= most:
        raise MalformedRequest(f"resource {name} is {amount}, expected 0 to {most}")
    return amount
