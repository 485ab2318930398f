"""What an autoscaler is told: what waits for workers, and what the workers do (autoscaling.proto, ToAutoscaler).

A pure function from the queue's state and the time to a message. It costs the number of workers, leases, waiting groups and
waiting tasks, about a microsecond for a task and five for a worker; so it is asked only while an autoscaler follows, and its
answer is bounded: groups and offers beyond a number or a size are left out.

A lease that was fetched ahead counts as waiting work: its worker has no slot for it, and another one would run it at once.
What a limit keeps from running (rexec/scheduler/fairness_settings.py, max_running) is counted apart, for no worker helps it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler.accounts import slots_of
from rexec.scheduler.category import limit_of
from rexec.scheduler.need import Need
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.shares import Node
from rexec.scheduler.state import QueueState
from rexec.scheduler.summary import shortened
from rexec.scheduler.task import Lease, Standing, Task, Worker
from rexec.scheduler.waiting import Group

UNKNOWN_SECONDS: Final = 10.0
"""What an action is expected to take as long as none has ever ended."""

MAX_GROUPS: Final = 500
MAX_GROUP_BYTES: Final = 8 << 10
"""Of the properties of one group. All groups together stay below gRPC's default limit of 4 MiB."""
MAX_OFFERS_BYTES: Final = 1 << 20
"""Of the properties of all offers."""

Kind = tuple[Requirement, int, int, int, str]
"""What makes a group: requirement, slots, thousandths of a core, bytes of memory, tenant."""


@dataclass(slots=True)
class _Sum:
    """What is known of a group so far."""

    tasks: int = 0
    slot_seconds: float = 0.0
    longest_seconds: float = 0.0
    oldest_at: float = float("inf")
    limited: int = 0

    def add(self, tasks: Iterable[Task], slots: int, usual_seconds: float) -> None:
        """These are of the group, too."""
        longest, oldest = self.longest_seconds, self.oldest_at
        total, count = 0.0, 0
        for task in tasks:
            expected = task.expected_seconds
            if expected is None:
                expected = usual_seconds
            total += expected
            if expected > longest:
                longest = expected
            if task.queued_at < oldest:
                oldest = task.queued_at
            count += 1
        self.tasks += count
        self.slot_seconds += total * slots
        self.longest_seconds, self.oldest_at = longest, oldest


def demand_of(state: QueueState, now: float) -> autoscaling_pb2.ToAutoscaler:
    """What waits and who works at this moment."""
    message = autoscaling_pb2.ToAutoscaler()
    usual_seconds = state.statistics.mean_seconds or UNKNOWN_SECONDS
    sums = _waiting(state, usual_seconds)
    _workers(message, state, usual_seconds, sums, now)
    _groups(message, sums, now)
    for tenant, tally in state.accounts.tenants.items():
        message.tenants.add(
            tenant=shortened(tenant), slots=tally.slots, slot_seconds=tally.slot_seconds.total(now)
        )  # fmt: skip
    return message


# What waits


def _waiting(state: QueueState, usual_seconds: float) -> dict[Kind, _Sum]:
    """The tasks in line."""
    sums: dict[Kind, _Sum] = {}
    granted: dict[Node, int] = {}
    """Leases that the groups so far may still have, for each who has a limit."""
    for group in state.waiting:
        task = next(iter(group.tasks.values()))
        kind = _kind_of(state, group.requirement, task.need, group.owner.tenant)
        found = sums.get(kind)
        if found is None:
            found = sums[kind] = _Sum()
        found.add(group.tasks.values(), task.need.slots, usual_seconds)
        found.limited += _limited(state, group, granted)
    return sums


def _kind_of(state: QueueState, requirement: Requirement, need: Need, tenant: str) -> Kind:
    memory = need.memory_bytes
    if not memory and need.expected_memory_bytes:
        # It goes to any worker that is empty, so it must not rule out a pool of small ones.
        memory = min(need.expected_memory_bytes, state.fleet.pools.least_memory_bytes(requirement))
    return requirement, need.slots, need.cpu_millis, memory, tenant


def _limited(state: QueueState, group: Group, granted: dict[Node, int]) -> int:
    """How many of the group would wait however many workers there were. Those whose turn it is not are counted: what its owner
    may still have goes to the groups in the order in which they come."""
    limits = state.fleet.shares.limits_on(group.owner)
    tasks = len(group.tasks)
    allowed = tasks
    for node in limits:
        allowed = min(allowed, max(0, node.limits.max_running - node.running - granted.get(node, 0)))
    for node in limits:
        granted[node] = granted.get(node, 0) + allowed
    if allowed < tasks:  # unless somebody else waits for the same, and may have it
        shared = sum(
            1
            for task in group.tasks.values()
            if task.place is not None and len(task.place.stands) > 1 and not limit_of(task, state.fleet)
        )
        allowed = min(tasks, allowed + shared)
    return tasks - allowed


def _groups(message: autoscaling_pb2.ToAutoscaler, sums: dict[Kind, _Sum], now: float) -> None:
    chosen = list(sums.items()) if len(sums) <= MAX_GROUPS else _fairest(sums)
    left_out = sum(found.tasks for found in sums.values())
    for (requirement, slots, cpu_millis, memory_bytes, tenant), found in chosen:
        properties = _properties(requirement.pairs)
        if sum(each.ByteSize() for each in properties) > MAX_GROUP_BYTES:
            continue
        left_out -= found.tasks
        message.waiting.add(
            instance_name=requirement.instance_name,
            properties=properties,
            tenant=shortened(tenant),
            slots=slots,
            cpu_millis=cpu_millis,
            memory_bytes=memory_bytes,
            tasks=found.tasks,
            slot_seconds=found.slot_seconds,
            longest_seconds=found.longest_seconds,
            oldest_seconds=max(0.0, now - found.oldest_at),
            limited_tasks=found.limited,
        )
    message.tasks_left_out = left_out


def _fairest(sums: dict[Kind, _Sum]) -> list[tuple[Kind, _Sum]]:
    """As many as are told of: the largest of each tenant, then the next ones, so that none crowds the others out."""
    ranks: dict[str, int] = {}
    ranked: list[tuple[int, int, Kind, _Sum]] = []
    for kind, found in sorted(sums.items(), key=lambda item: -item[1].tasks):
        rank = ranks[kind[-1]] = ranks.get(kind[-1], 0) + 1
        ranked.append((rank, -found.tasks, kind, found))
    ranked.sort(key=lambda entry: entry[:2])
    return [(kind, found) for _rank, _tasks, kind, found in ranked[:MAX_GROUPS]]


# Who works


def _workers(
    message: autoscaling_pb2.ToAutoscaler, state: QueueState, usual_seconds: float, sums: dict[Kind, _Sum], now: float
) -> None:  # fmt: skip
    """The workers, and among what waits the leases that they have fetched ahead."""
    places: dict[Offer, int] = {}
    for worker in state.fleet.workers.values():
        place = places.setdefault(worker.offer, len(places))
        shown = message.workers.add(
            name=worker.name,
            worker_id=worker.worker_id,
            offer=place,
            slots=worker.slots,
            busy_slots=min(worker.slots, worker.used_slots),
            leases=len(worker.leases),
            draining=worker.draining,
            away=not worker.connected,
            quarantined=worker.standing is not Standing.TRUSTED,
        )
        if not worker.leases:
            shown.idle_seconds = max(0.0, now - worker.idle_since)
            continue
        ahead = _ahead(worker)
        for lease in ahead:
            kind = _kind_of(state, lease.task.candidate.requirement, lease.task.need, lease.owner.tenant)
            found = sums.get(kind)
            if found is None:
                found = sums[kind] = _Sum()
            found.add((lease.task,), kind[1], usual_seconds)
        shown.rest_seconds = _rest_seconds(worker, now)
        for tenant, slots in _tenants(worker, ahead).items():
            shown.tenants.add(tenant=shortened(tenant), slots=slots)
    _offers(message, places)


def _ahead(worker: Worker) -> list[Lease]:
    """The leases that it has no slot for: the youngest of those that have not begun."""
    beyond = worker.used_slots - worker.slots
    ahead: list[Lease] = []
    if beyond > 0:
        for lease in reversed(worker.leases.values()):
            if not lease.started and lease.use is not None and lease.use.slots <= beyond:
                ahead.append(lease)
                beyond -= lease.use.slots
    return ahead


def _rest_seconds(worker: Worker, now: float) -> float:
    """Until its leases are expected to have ended, as far as anything is known of them."""
    longest = total = 0.0
    for lease in worker.leases.values():
        expected = lease.task.expected_seconds
        if expected is None or lease.use is None:
            continue
        left = expected if lease.began_at is None else max(0.0, expected - (now - lease.began_at))
        longest = max(longest, left)
        total += left * lease.use.slots
    return max(longest, total / worker.slots)


def _tenants(worker: Worker, ahead: list[Lease]) -> dict[str, int]:
    slots: dict[str, int] = {}
    for lease in worker.leases.values():
        if lease.use is not None and lease not in ahead:
            slots[lease.owner.tenant] = slots.get(lease.owner.tenant, 0) + slots_of(lease.task)
    return slots


def _offers(message: autoscaling_pb2.ToAutoscaler, places: dict[Offer, int]) -> None:
    left_bytes = MAX_OFFERS_BYTES
    for offer in places:
        shown = message.offers.add(
            instance_names=sorted(offer.instance_names), cpu_millis=offer.cpu_millis, memory_bytes=offer.memory_bytes
        )
        properties = _properties(offer.pairs)
        size_bytes = sum(each.ByteSize() for each in properties) + shown.ByteSize()
        if size_bytes <= left_bytes:  # else it is shown as if it offered nothing
            shown.properties.extend(properties)
            left_bytes -= size_bytes
        else:
            del shown.instance_names[:]


def _properties(pairs: Iterable[tuple[str, str]]) -> list[re_pb2.Platform.Property]:
    return [re_pb2.Platform.Property(name=name, value=value) for name, value in sorted(pairs)]
