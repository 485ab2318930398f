"""The agent and its stream: credit, results kept until acknowledged, revoking, reconnecting, leaving (behaviours 12, 24)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.rexec.scheduler.v1 import record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.agent import Agent
from rexec.worker.link import Link, Refused
from rexec.worker.reconnect import Reconnect
from tests.worker.actions import Inputs, Worker, make_context
from tests.worker.scheduler import SECONDS, Scheduler, Stream

Finished = worker_pb2.Finished


class Rig:
    """An agent that runs, and the scheduler it talks to."""

    def __init__(self, worker: Worker, agent: Agent, scheduler: Scheduler, gate: Path) -> None:
        self.worker = worker
        self.agent = agent
        self.scheduler = scheduler
        self.gate = gate

    async def blocking(self, **options: Any) -> worker_pb2.Lease:
        """An action that runs until `open_gate`."""
        script = f"until [ -e {self.gate} ]; do sleep 0.02; done; echo done"
        return await self.worker.lease("/bin/sh", "-c", script, **options)

    def open_gate(self) -> None:
        self.gate.write_bytes(b"")

    async def attached(self) -> Stream:
        stream = await self.scheduler.stream()
        await stream.hello()
        return stream


def phases(stream: Stream) -> set[tuple[str, int]]:
    """Of all leases, as far as they were told."""
    return {(m.progress.lease_id, m.progress.phase) for m in stream.seen if m.HasField("progress")}


@pytest_asyncio.fixture
async def rig(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Rig]:
    context = await make_context(tmp_path / "work", store, properties={"pool": ["a", "b"]}, reconnect_min_seconds=0.001)
    scheduler = Scheduler()
    agent = Agent(context, scheduler.dial, "session")
    gate = tmp_path / "gate"
    running = asyncio.create_task(agent.run())
    try:
        yield Rig(Worker(context, Inputs(store), tmp_path / "work"), agent, scheduler, gate)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        context.workspace.close()


async def test_hello_says_what_the_worker_offers(rig: Rig) -> None:
    hello = await (await rig.scheduler.stream()).hello()
    assert (hello.worker_name, hello.session_id, hello.slots) == ("w", "session", 2)
    offered = [(each.name, each.value) for each in hello.properties]
    assert ("OSFamily", "linux") in offered
    assert ("OSFamily", "Linux") in offered
    assert {name for name, _ in offered} >= {"OSFamily", "ISA", "Arch"}
    assert [value for name, value in offered if name == "pool"] == ["a", "b"]


async def test_credit_is_free_slots_and_one_place_for_prefetching(rig: Rig) -> None:
    stream = await rig.attached()
    assert (await stream.credit(3)).leases_received == 0
    lease = await rig.worker.lease("/bin/true")
    stream.lease(lease)
    finished = await stream.finished()
    assert finished.action_result.exit_code == 0
    credits = [message.credit for message in stream.seen if message.HasField("credit")]
    assert (credits[-1].leases, credits[-1].leases_received) == (3, 1)


async def test_24_outputs_are_stored_before_the_end_is_told(rig: Rig) -> None:
    stream = await rig.attached()
    stream.lease(await rig.worker.lease("/bin/sh", "-c", "echo x > f", output_paths=["f"]))
    finished = await stream.finished()
    assert Digest.from_proto(finished.action_result.output_files[0].digest) in rig.worker.store.blobs


async def test_a_third_lease_is_prefetched_and_runs_when_a_slot_is_free(rig: Rig) -> None:
    stream = await rig.attached()
    leases = [await rig.blocking(inputs={"f": str(n).encode()}) for n in range(3)]
    for lease in leases[:2]:
        stream.lease(lease)
    await stream.until(lambda _: phases(stream) >= {(lease.lease_id, 3) for lease in leases[:2]})
    stream.lease(leases[2])
    await stream.until(lambda m: m.progress.lease_id == leases[2].lease_id and m.progress.phase == 2)
    running = {m.progress.lease_id for m in stream.seen if m.progress.phase == worker_pb2.Progress.RUNNING}
    assert leases[2].lease_id not in running
    rig.open_gate()
    await stream.running(leases[2].lease_id)


async def test_a_lease_is_answered_as_it_comes_also_when_it_has_to_wait_for_a_slot(rig: Rig) -> None:
    stream = await rig.attached()
    leases = [await rig.blocking() for _ in range(3)]
    for lease in leases:
        stream.lease(lease)
    await stream.until(lambda _: phases(stream) >= {(lease.lease_id, worker_pb2.Progress.FETCHING) for lease in leases})
    rig.open_gate()


async def test_hello_says_what_actions_may_use_up(rig: Rig) -> None:
    hello = await (await rig.scheduler.stream()).hello()
    assert hello.resources["cpu"] >= 1
    assert hello.resources["memory"] > 0


async def test_a_lease_of_several_slots_takes_them_all(rig: Rig) -> None:
    stream = await rig.attached()
    await stream.credit(3)
    large, small = await rig.blocking(), await rig.blocking()
    large.demand.slots = 2
    stream.lease(large)
    assert (await stream.credit(1)).leases_received == 1
    await stream.running(large.lease_id)
    stream.lease(small)
    await stream.until(lambda _: (small.lease_id, worker_pb2.Progress.LAYING_OUT) in phases(stream))
    assert (small.lease_id, worker_pb2.Progress.RUNNING) not in phases(stream)
    assert rig.agent._leases.room() == 0
    rig.open_gate()
    await stream.running(small.lease_id)
    await stream.credit(3)


@pytest.mark.parametrize(
    ("demand", "said"),
    [
        (record_pb2.Demand(slots=3), "3 slots, this worker has 2"),
        (record_pb2.Demand(cpu_millis=1 << 40), "thousandths of a core"),
        (record_pb2.Demand(memory_bytes=1 << 60), "bytes of memory"),
    ],
    ids=["slots", "cpu", "memory"],
)
async def test_a_lease_that_never_fits_is_handed_back(rig: Rig, demand: record_pb2.Demand, said: str) -> None:
    stream = await rig.attached()
    lease = await rig.worker.lease("/bin/true", demand=demand)
    stream.lease(lease)
    finished = await stream.finished(lease.lease_id)
    assert finished.failure == Finished.BACK_PRESSURE
    assert said in finished.message
    # It takes others again after a heartbeat.
    assert (await stream.credit(3)).leases_received == 1


async def test_12_a_revoked_lease_is_killed_and_said_to_be(rig: Rig) -> None:
    stream = await rig.attached()
    lease = await rig.worker.lease("/bin/sh", "-c", "trap '' TERM; sleep 1000 & sleep 1000")
    stream.lease(lease)
    await stream.running(lease.lease_id)
    stream.revoke(lease)
    finished = await stream.finished()
    assert (finished.failure, finished.message) == (Finished.REVOKED, "cancelled")
    stream.revoke(lease)
    stream.acknowledge(finished)
    await stream.credit(3)


async def test_a_revoke_right_behind_its_lease_is_answered(rig: Rig) -> None:
    stream = await rig.attached()
    lease = await rig.worker.lease("/bin/sleep", "1000")
    stream.lease(lease)
    stream.revoke(lease)
    assert (await stream.finished()).failure == Finished.REVOKED


async def test_a_revoke_of_something_unknown_is_answered(rig: Rig) -> None:
    stream = await rig.attached()
    stream.revoke(worker_pb2.Lease(lease_id="never seen", epoch=3))
    assert (await stream.finished("never seen")).failure == Finished.REVOKED


async def test_a_broken_stream_stops_nothing_and_results_are_told_again(rig: Rig) -> None:
    stream = await rig.attached()
    quick, slow = await rig.worker.lease("/bin/echo", "quick"), await rig.blocking()
    stream.lease(quick)
    first = await stream.finished(quick.lease_id)
    stream.lease(slow)
    await stream.running(slow.lease_id)
    stream.cut()
    again = await rig.scheduler.stream()
    hello = await again.hello()
    assert {(held.lease_id, held.epoch) for held in hello.held} == {(quick.lease_id, 1), (slow.lease_id, 1)}
    repeated = await again.finished(quick.lease_id)
    assert repeated == first
    again.acknowledge(repeated)
    rig.open_gate()
    finished = await again.finished(slow.lease_id)
    assert finished.action_result.exit_code == 0
    again.acknowledge(finished)
    again.cut()
    third = await rig.scheduler.stream()
    assert not (await third.hello()).held


async def test_how_far_leases_are_is_told_again_on_another_stream(rig: Rig) -> None:
    stream = await rig.attached()
    lease = await rig.blocking()
    stream.lease(lease)
    await stream.running(lease.lease_id)
    stream.cut()
    again = await rig.scheduler.stream()
    hello = await again.hello()
    again.seen.clear()
    message = await again.until(lambda m: m.HasField("progress"))
    assert [held.lease_id for held in hello.held] == [lease.lease_id]
    assert (message.progress.lease_id, message.progress.phase) == (lease.lease_id, worker_pb2.Progress.RUNNING)
    assert message.progress.partial_metadata.HasField("execution_start_timestamp")
    rig.open_gate()


async def test_leases_that_are_somebody_elses_by_now_are_stopped_in_silence(rig: Rig) -> None:
    stream = await rig.attached()
    lost, kept = await rig.blocking(), await rig.blocking()
    stream.lease(lost)
    stream.lease(kept)
    await stream.running(kept.lease_id)
    stream.cut()
    again = await rig.scheduler.stream()
    await again.hello(unknown=[worker_pb2.HeldLease(lease_id=lost.lease_id, epoch=lost.epoch)])
    await again.credit(2)
    rig.open_gate()
    await again.finished(kept.lease_id)
    assert not [m for m in again.seen if m.finished.lease_id == lost.lease_id]


async def test_the_same_lease_with_another_epoch_is_another_lease(rig: Rig) -> None:
    stream = await rig.attached()
    lease = await rig.blocking()
    stream.lease(lease)
    stream.lease(lease)
    await stream.running(lease.lease_id)
    newer = worker_pb2.Lease()
    newer.CopyFrom(lease)
    newer.epoch = 2
    stream.lease(newer)
    await stream.running(lease.lease_id)
    stream.revoke(lease)
    assert (await stream.finished()).epoch == 1
    rig.open_gate()
    assert (await stream.finished()).epoch == 2


async def test_a_scheduler_that_does_not_answer_is_left(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await rig.attached()
    monkeypatch.setattr("rexec.worker.agent.WELCOME_SECONDS", 0.01)
    first.cut()
    silent = await rig.scheduler.stream()
    await silent.until(lambda m: m.HasField("hello"))
    await rig.attached()


async def test_a_thousand_workers_come_back_spread_over_the_pause(
    tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = await make_context(tmp_path / "work", store)
    reconnect = Reconnect(context.settings)
    shares = iter([0.0, 0.25, 1.0] * 10)
    monkeypatch.setattr("rexec.worker.reconnect.random.random", lambda: next(shares))
    pauses = [reconnect.pause_seconds(refused=False) for _ in range(9)]
    assert pauses == [0.0, 0.025, 0.2, 0.0, 0.2, 1.0, 0.0, 0.25, 1.0]
    context.workspace.close()


async def test_a_first_message_that_is_no_welcome_ends_the_stream(rig: Rig) -> None:
    stream = await rig.scheduler.stream()
    await stream.until(lambda m: m.HasField("hello"))
    stream.down.put_nowait(worker_pb2.ToWorker())
    await rig.attached()


@pytest.mark.parametrize("told_by", ["signal", "scheduler"])
async def test_draining_finishes_what_runs_and_hands_back_the_rest(rig: Rig, told_by: str) -> None:
    stream = await rig.attached()
    leases = [await rig.blocking() for _ in range(3)]
    for lease in leases[:2]:
        stream.lease(lease)
    await stream.until(lambda _: phases(stream) >= {(lease.lease_id, 3) for lease in leases[:2]})
    stream.lease(leases[2])
    await stream.until(lambda _: (leases[2].lease_id, 2) in phases(stream))
    if told_by == "signal":
        rig.agent.drain("SIGTERM", 60)
    else:
        drain = worker_pb2.Drain(reason="scale in")
        drain.grace.FromSeconds(60)
        stream.down.put_nowait(worker_pb2.ToWorker(drain=drain))
    assert (await stream.finished(leases[2].lease_id)).failure == Finished.BACK_PRESSURE
    assert any(m.HasField("draining") for m in stream.seen)
    late = await rig.blocking()
    stream.lease(late)
    refused = await stream.finished(late.lease_id)
    assert refused.failure == Finished.BACK_PRESSURE
    rig.open_gate()
    for _ in leases[:2]:
        finished = await stream.finished()
        assert (finished.failure, finished.action_result.exit_code) == (Finished.NONE, 0)
        stream.acknowledge(finished)
        await asyncio.sleep(0)
    stream.acknowledge(Finished(lease_id=leases[2].lease_id, epoch=1))
    async with asyncio.timeout(SECONDS):
        await rig.agent._gone.wait()


async def test_what_does_not_end_within_the_grace_is_handed_back(rig: Rig) -> None:
    stream = await rig.attached()
    lease = await rig.worker.lease("/bin/sleep", "1000")
    stream.lease(lease)
    await stream.running(lease.lease_id)
    rig.agent.drain("SIGTERM", 0)
    finished = await stream.finished()
    assert finished.failure == Finished.BACK_PRESSURE
    stream.acknowledge(finished)
    async with asyncio.timeout(SECONDS):
        await rig.agent._gone.wait()


async def test_an_idle_worker_leaves_at_once_and_says_so(rig: Rig) -> None:
    stream = await rig.attached()
    await stream.credit(3)
    rig.agent.drain("SIGTERM", 60)
    assert rig.agent._gone.is_set()
    assert (await stream.until(lambda m: m.HasField("draining"))).draining.reason == "SIGTERM"


async def test_what_the_scheduler_knows_to_outlast_the_grace_is_handed_back_at_once(rig: Rig) -> None:
    stream = await rig.attached()
    short, long = await rig.blocking(), await rig.worker.lease("/bin/sleep", "1000")
    for lease in (short, long):
        stream.lease(lease)
    await stream.until(lambda _: phases(stream) >= {(short.lease_id, 3), (long.lease_id, 3)})
    rig.agent.drain("SIGTERM", 600)
    draining = (await stream.until(lambda m: m.HasField("draining"))).draining
    assert 590 < draining.grace.ToSeconds() <= 600
    drain = worker_pb2.Drain(reason="SIGTERM", hand_back=[worker_pb2.HeldLease(lease_id=long.lease_id, epoch=1)])
    drain.grace.FromSeconds(600)
    stream.down.put_nowait(worker_pb2.ToWorker(drain=drain))
    back = await stream.finished()
    assert (back.lease_id, back.failure) == (long.lease_id, Finished.BACK_PRESSURE)
    stream.acknowledge(back)
    rig.open_gate()
    finished = await stream.finished()
    assert (finished.lease_id, finished.failure) == (short.lease_id, Finished.NONE)
    stream.acknowledge(finished)
    async with asyncio.timeout(SECONDS):
        await rig.agent._gone.wait()


async def test_a_worker_that_leaves_says_so_again_on_the_next_stream_and_when_it_has_less_time(rig: Rig) -> None:
    stream = await rig.attached()
    lease = await rig.blocking()
    stream.lease(lease)
    await stream.running(lease.lease_id)
    rig.agent.drain("SIGTERM", 6000)
    stream.cut()
    stream = await rig.scheduler.stream()
    await stream.hello(resumed=[worker_pb2.HeldLease(lease_id=lease.lease_id, epoch=1)])
    again = (await stream.until(lambda m: m.HasField("draining"))).draining
    assert (again.reason, 5900 < again.grace.ToSeconds() <= 6000) == ("SIGTERM", True)
    rig.agent.drain("less time", 7000)
    rig.agent.drain("less time", 600)
    assert (await stream.until(lambda m: m.HasField("draining"))).draining.grace.ToSeconds() <= 600
    rig.open_gate()
    stream.acknowledge(await stream.finished())
    async with asyncio.timeout(SECONDS):
        await rig.agent._gone.wait()


async def test_heartbeats_tell_how_the_machine_is(rig: Rig) -> None:
    stream = await rig.attached()
    beat = (await stream.until(lambda m: m.HasField("heartbeat"))).heartbeat
    assert beat.free_disk_bytes > 0
    assert beat.available_memory_bytes > 0


async def test_an_unforeseen_failure_costs_one_lease_and_not_the_agent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await rig.attached()
    with monkeypatch.context() as patch:
        patch.setattr("rexec.worker.action.lay_out", lambda *_: 1 / 0)
        stream.lease(await rig.worker.lease("/bin/true"))
        assert (await stream.finished()).failure == Finished.INFRASTRUCTURE
    lease = await rig.worker.lease("/bin/true")
    stream.lease(lease)
    assert (await stream.finished(lease.lease_id)).failure == Finished.NONE


async def test_a_worker_that_is_refused_asks_again_after_the_longest_pause(
    tmp_path: Path, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = await make_context(tmp_path / "work", store, reconnect_min_seconds=0.001, reconnect_max_seconds=7.0)
    pauses: list[float] = []
    dialled = asyncio.Event()

    @asynccontextmanager
    async def dial() -> AsyncIterator[Link]:
        raise Refused("INVALID_ARGUMENT: 5000 slots, expected 1 to 4096")
        yield

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        dialled.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("rexec.worker.agent.asyncio.sleep", pause)
    running = asyncio.create_task(Agent(context, dial, "session").run())
    async with asyncio.timeout(SECONDS):
        await dialled.wait()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [3.5 <= seconds <= 7.0 for seconds in pauses] == [True]
    context.workspace.close()
