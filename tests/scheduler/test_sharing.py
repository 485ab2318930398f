"""From a request to a share of the workers: owners, figures of the platform, resources of workers, names of inputs."""

from __future__ import annotations

import pytest

from cas.context import ANYONE, Identity
from cas.errors import MalformedRequest, QueueFull
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.fairness_settings import FairnessSettings, OwnShareSettings
from rexec.scheduler.need import MAX_MEMORY_BYTES
from rexec.scheduler.owner import MAX_NAME_CHARACTERS, bounded, owner_of
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Owner
from rexec.scheduler.wire import read_owner, write_owner
from tests.scheduler.world import World

GIB = 1 << 30
QUEUED, EXECUTING = re_pb2.ExecutionStage.QUEUED, re_pb2.ExecutionStage.EXECUTING


class TestOwners:
    def test_the_tenant_is_that_of_the_identity_or_else_the_instance(self) -> None:
        metadata = re_pb2.RequestMetadata(tool_invocation_id="i", correlated_invocations_id="c")
        assert owner_of("main", Identity("alice", tenant="red"), metadata) == Owner("red", "alice", "i")
        assert owner_of("main", Identity("alice"), metadata) == Owner("main", "alice", "i")

    def test_who_is_nobody_shares_with_all_others_who_are(self) -> None:
        assert owner_of("", ANYONE, re_pb2.RequestMetadata()) == Owner("", "anonymous", "")

    def test_without_an_invocation_the_larger_thing_counts(self) -> None:
        metadata = re_pb2.RequestMetadata(correlated_invocations_id="c")
        assert owner_of("", ANYONE, metadata).invocation == "c"

    @pytest.mark.parametrize("name", ["x" * 257, "é" * 100_000, "\ud800" * 300])
    def test_long_names_are_cut_and_stay_different(self, name: str) -> None:
        cut, other = bounded(name), bounded(name + "y")
        assert len(cut) == len(other) == MAX_NAME_CHARACTERS
        assert cut != other
        assert bounded("x" * MAX_NAME_CHARACTERS) == "x" * MAX_NAME_CHARACTERS

    def test_a_name_that_cannot_be_written_down_is_replaced_and_stays_different(self) -> None:
        halves = [bounded(f"eve\ud83d{half}") for half in ("", "\udbff", "\ud83d")]
        assert len(set(halves)) == 3
        for name in halves:
            assert read_owner(write_owner(Owner(name, name, name))) == Owner(name, name, name)

    async def test_a_request_is_its_senders(self) -> None:
        fairness = FairnessSettings(tenants={"red": OwnShareSettings(max_queued=1, max_running=1)})
        async with World(SchedulerSettings(fairness=fairness)) as world:
            red = Identity("alice", tenant="red")
            first = world.execute(await world.action("a"), identity=red)
            await first.until(QUEUED)
            with pytest.raises(QueueFull, match="tenant 'red' has 1 operations queued, and the limit is 1"):
                await world.execute(await world.action("b"), identity=red).next()
            await world.worker(slots=4)
            await first.until(EXECUTING)
            second = world.execute(await world.action("c"), identity=red)
            await second.until(QUEUED)
            await world.execute(await world.action("d"), identity=Identity("bob")).until(EXECUTING)
            state = await world.broker.state(second.name)
            assert state.reason == "the limit of tenant 'red', 1 running, is reached"


class TestFigures:
    async def test_a_lease_says_what_it_takes_up(self, world: World) -> None:
        worker = world.silent_worker()
        worker.say(hello=worker_pb2.Hello(worker_name="w", session_id="s", slots=8,
                                          resources={"cpu": 8000, "memory": 16 * GIB, "gpu": 2}))  # fmt: skip
        await worker.hear("welcome")
        worker.say(credit=worker_pb2.Credit(leases=8))
        properties = (("cpu", "2.5"), ("memory", "4GiB"), ("slots", "2"))
        stream = world.execute(await world.action(platform=properties))
        await stream.until(EXECUTING)
        lease = await worker.lease()
        figures = lease.demand.slots, lease.demand.cpu_millis, lease.demand.memory_bytes
        assert figures == (2, 2500, 4 * GIB)

    async def test_a_plain_action_says_nothing_of_it(self, world: World) -> None:
        worker = await world.worker()
        await world.execute(await world.action()).until(EXECUTING)
        assert not (await worker.lease()).HasField("demand")

    async def test_a_worker_that_offers_cpu_as_a_property_takes_what_asks_for_less(self, world: World) -> None:
        await world.worker(properties=(("cpu", "4"),), slots=2)
        await world.execute(await world.action("fits", platform=(("cpu", "3"),))).until(EXECUTING)
        large = world.execute(await world.action("large", platform=(("cpu", "5"),)))
        await large.until(QUEUED)
        assert "cpu=5 (the most is 4)" in (await world.broker.state(large.name)).reason

    async def test_a_figure_that_makes_no_sense_is_refused(self, world: World) -> None:
        with pytest.raises(MalformedRequest, match="platform property memory='much'"):
            await world.execute(await world.action(platform=(("memory", "much"),))).next()

    @pytest.mark.parametrize(
        "resources",
        [{"cpu": -1}, {"memory": -(2**63)}, {"memory": MAX_MEMORY_BYTES + 1}, {"cpu": 2**63 - 1},
         {str(number): 1 for number in range(1001)}],
    )  # fmt: skip
    async def test_resources_that_make_no_sense_are_refused(self, world: World, resources: dict[str, int]) -> None:
        worker = world.silent_worker()
        worker.say(hello=worker_pb2.Hello(worker_name="w", session_id="s", slots=1, resources=resources))
        with pytest.raises(MalformedRequest, match="resource"):
            await worker.hear("welcome")
        assert world.broker.snapshot().slots == 0


async def test_an_action_goes_where_its_inputs_have_been_used(world: World) -> None:
    toolchain = {f"toolchain/{number}": b"x" for number in range(20)}
    workers = {name: await world.worker(name, slots=4) for name in ("w1", "w2", "w3")}

    async def run(number: int, files: dict[str, bytes]) -> str:
        root = await world.root(files | {"source": str(number).encode()})
        stream = world.execute(await world.action(str(number), root=root))
        await stream.until(EXECUTING)
        metadata = (await world.broker.state(stream.name)).metadata
        assert metadata is not None
        return metadata.worker

    first = await run(0, toolchain)
    await run(1, {f"other/{number}": b"y" for number in range(20)})
    assert await run(2, toolchain) == first
    assert set(workers) > {first}
