"""What the policy is shown (rexec/autoscale/view.py), made of what the scheduler tells, the machines and the configuration."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.learned import Learned
from rexec.autoscale.provider import Machine, Phase
from rexec.autoscale.settings import PoolSettings
from rexec.autoscale.shape import IMAGE_PROPERTY, Shape, shape_name, shapes
from rexec.autoscale.view import Member, MemberState, Offer, Pairs, PoolView, Waiting


class FleetView(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    shapes: Mapping[str, Shape]
    """By pool."""
    pools: tuple[PoolView, ...]
    waiting: tuple[Waiting, ...]
    members: tuple[Member, ...]
    workers: Mapping[str, autoscaling_pb2.AttachedWorker]
    """Those of our machines that the scheduler knows, by name."""


def fleet_view(
    families: Sequence[PoolSettings],
    snapshot: autoscaling_pb2.ToAutoscaler,
    machines: Mapping[str, Machine],
    learned: Learned,
    *,
    attached: Collection[str] = (),
    leaving: Collection[str] = (),
    wall: float = 0.0,
    snapshot_age_seconds: float = 0.0,
) -> FleetView:
    """`machines` holds those that are being asked for, too. `attached`: names of those whose worker has been there; `leaving`: of
    those that were asked to go and that the scheduler may not have told of yet. `wall`: now, in seconds since 1970."""
    waiting = tuple(work for said in snapshot.waiting if (work := waiting_of(said)) is not None)
    living = {name: machine for name, machine in machines.items() if machine.phase is not Phase.ENDED}
    asked = [value for work in waiting for name, value in sorted(work.pairs) if name == IMAGE_PROPERTY]
    found = shapes(families, ((machine.pool, machine.image) for machine in living.values()), asked)
    workers = {worker.name: worker for worker in snapshot.workers if worker.name in machines}
    members = []
    for name, machine in living.items():
        pool = shape_name(families, machine.pool, machine.image)
        if pool in found:
            state = state_of(machine, workers.get(name), name in attached, name in leaving)
            members.append(
                _member(
                    machine,
                    pool,
                    found[pool].settings.slots,
                    state,
                    workers.get(name),
                    wall - machine.created_at,
                    snapshot_age_seconds,
                )
            )
    pools = tuple(pool_view(shape, learned) for shape in found.values())
    return FleetView(found, pools, waiting, tuple(members), workers)


def pool_view(shape: Shape, learned: Learned) -> PoolView:
    """A pool without what holds it back, which the loop knows."""
    settings = shape.settings
    return PoolView(
        name=shape.name,
        family=shape.family,
        offer=shape.offer(learned.offer(shape.name)),
        min=settings.min,
        max=settings.max,
        family_max=settings.max,
        target_wait_seconds=settings.target_wait_seconds,
        idle_seconds=settings.idle_seconds,
        # None comes later than that; a clock that was set forward while some were on their way says otherwise.
        start_seconds=min(learned.start_seconds(shape.name, settings.start_seconds), settings.start_timeout_seconds),
        price_per_hour=settings.price_per_hour,
    )


def waiting_of(said: autoscaling_pb2.WaitingWork) -> Waiting | None:
    """What waits, without the tasks that a limit holds up; None if those are all."""
    tasks = said.tasks - said.limited_tasks
    if tasks <= 0:
        return None
    return Waiting(
        pairs=pairs_of(said.properties),
        instance_name=said.instance_name,
        tenant=said.tenant,
        slots=max(1, said.slots),
        cpu_millis=said.cpu_millis,
        memory_bytes=said.memory_bytes,
        tasks=tasks,
        slot_seconds=said.slot_seconds * tasks / said.tasks,
        longest_seconds=said.longest_seconds,
        oldest_seconds=said.oldest_seconds,
    )


def state_of(
    machine: Machine, worker: autoscaling_pb2.AttachedWorker | None, was_attached: bool, was_asked_to_leave: bool
) -> MemberState:
    """Where a machine that has not ended is in its life."""
    if machine.phase is Phase.LEAVING or was_asked_to_leave:
        return MemberState.LEAVING
    if worker is None:
        # The scheduler has lost sight of it: its worker may come back, as after a restart of the scheduler.
        return MemberState.AWAY if was_attached else MemberState.STARTING
    if worker.draining:
        return MemberState.LEAVING
    # One in quarantine is there, but gets nothing to do.
    return MemberState.AWAY if worker.away or worker.quarantined else MemberState.READY


def offers_by_pool(
    view: FleetView, snapshot: autoscaling_pb2.ToAutoscaler, slots: Mapping[str, int]
) -> dict[str, list[Offer]]:  # fmt: skip
    """What the attached workers of each pool offer. `slots`: of a worker of each pool. A place in the list of offers that is not
    there is passed over."""
    made: dict[int, Offer] = {}
    found: dict[str, dict[int, Offer]] = {}
    for member in view.members:
        worker = view.workers.get(member.name)
        if worker is None or not 0 <= worker.offer < len(snapshot.offers):
            continue
        if worker.offer not in made:
            said = snapshot.offers[worker.offer]
            made[worker.offer] = Offer(
                pairs_of(said.properties),
                frozenset(said.instance_names),
                slots.get(member.pool, 1),
                said.cpu_millis,
                said.memory_bytes,
            )
        found.setdefault(member.pool, {})[worker.offer] = made[worker.offer]
    return {pool: list(offers.values()) for pool, offers in found.items()}


def pairs_of(properties: Iterable[re_pb2.Platform.Property]) -> Pairs:
    """Platform properties as values."""
    return frozenset((each.name, each.value) for each in properties)


def _member(
    machine: Machine,
    pool: str,
    slots: int,
    state: MemberState,
    worker: autoscaling_pb2.AttachedWorker | None,
    age_seconds: float,
    snapshot_age_seconds: float,
) -> Member:
    age_seconds = max(0.0, age_seconds)
    if worker is None:
        return Member(machine.name, pool, state, slots, age_seconds=age_seconds)
    return Member(
        name=machine.name,
        pool=pool,
        state=state,
        slots=worker.slots or slots,
        # One that has only fetched leases ahead has something to do as well.
        busy_slots=max(worker.busy_slots, 1 if worker.leases else 0),
        # Had it got something to do, there were another snapshot.
        idle_seconds=0.0 if worker.leases else worker.idle_seconds + snapshot_age_seconds,
        age_seconds=age_seconds,
        rest_seconds=worker.rest_seconds,
        tenants=tuple((entry.tenant, entry.slots) for entry in worker.tenants),
    )
