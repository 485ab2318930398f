"""Actions go where their inputs have been used lately, within bounds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.affinity import MAX_NAMES
from rexec.scheduler.fairness_settings import AffinitySettings
from rexec.scheduler.inputs import MAX_PARTS, InputRoots
from rexec.scheduler.settings import SchedulerSettings
from tests.scheduler.rules import Driver
from tests.scheduler.simulation import Simulation


def settings(**affinity: bool | int) -> SchedulerSettings:
    return SchedulerSettings(affinity=AffinitySettings(**affinity))  # type: ignore[arg-type]


class TestWhichWorker:
    @staticmethod
    def pair(rules: Driver, slots: int = 4) -> None:
        """Two workers; the one with the odd inputs has a lease fewer than the other."""
        for name in ("w1", "w2"):
            rules.attach(name, slots=slots)
        names = [rules.submit(affinity=[inputs]) for inputs in ("clang", "rustc", "clang", "clang")]
        assert [rules.running_on(name) for name in names[:2]] == ["w1", "w2"]

    def test_one_that_has_used_the_same_is_preferred(self) -> None:
        rules = Driver()
        self.pair(rules)
        assert [rules.running_on(name) for name in rules.queue.operations] == ["w1", "w2", "w1", "w1"]
        assert rules.running_on(rules.submit(affinity=["rustc"])) == "w2"

    def test_but_only_if_it_has_hardly_fewer_free_slots_than_the_emptiest(self) -> None:
        rules = Driver(settings(slack_slots=1))
        self.pair(rules, slots=8)
        names = [rules.submit(affinity=["clang"]) for _ in range(4)]
        assert {rules.running_on(name) for name in names} == {"w1", "w2"}
        free = [worker.free_slots for worker in rules.queue.fleet.workers.values()]
        assert abs(free[0] - free[1]) <= 2

    def test_most_names_in_common_win(self) -> None:
        rules = Driver()
        for name in ("w1", "w2", "w3"):
            rules.attach(name, slots=9)
        rules.submit(affinity=["sysroot"])
        rules.submit(affinity=["sysroot", "headers"])
        rules.submit(affinity=["other"])
        by_worker = {rules.running_on(name): name for name in rules.queue.operations}
        best = rules.running_on("operation-2")
        assert rules.running_on(rules.submit(affinity=["headers", "sysroot", "new"])) == best
        assert by_worker[best] == "operation-2"

    def test_never_one_that_is_excluded_or_full(self) -> None:
        rules = Driver()
        rules.attach("w1", slots=1)
        first = rules.submit(affinity=["clang"])
        rules.attach("w2", slots=4)
        assert rules.running_on(first) == "w1"
        assert rules.running_on(rules.submit(affinity=["clang"])) == "w2"

    def test_it_can_be_switched_off(self) -> None:
        rules = Driver(settings(enabled=False))
        self.pair(rules)
        used = [rules.running_on(name) for name in rules.queue.operations]
        assert sorted(used) == ["w1", "w1", "w2", "w2"]

    def test_a_worker_that_is_gone_is_forgotten_and_so_is_what_was_used_long_ago(self) -> None:
        rules = Driver()
        worker = rules.attach(slots=1)
        for number in range(3 * MAX_NAMES):
            rules.submit(affinity=[f"name-{number}", "always"])
            rules.finish(worker)
            rules.credit(worker, 1)
        affinity = rules.queue.fleet.affinity
        assert len(affinity._names[worker]) == MAX_NAMES
        assert affinity._workers.keys() == affinity._names[worker].keys()
        assert "always" in affinity._workers
        rules.attach("w1", session="another")
        assert (affinity._names, affinity._workers) == ({}, {})


class TestWhichTask:
    @staticmethod
    def served(chosen: SchedulerSettings, inputs: Sequence[str], priorities: Sequence[int] = ()) -> list[str]:
        """The inputs in the order in which a worker that knows clang takes them."""
        world = Simulation(chosen)
        world.submit("first", affinity=("clang",))
        world.attach("w", 1)
        for number, name in enumerate(inputs):
            priority = priorities[number] if priorities else 0
            world.submit(f"{name}-{number}", affinity=(name,), priority=priority)
        world.run(len(inputs) + 1.5)
        return [run.name.partition("-")[0] for run in world.runs[1:]]

    def test_a_worker_takes_what_it_knows_among_the_next_few(self) -> None:
        served = self.served(settings(max_passed_over=9), ["rustc", "rustc", "clang", "clang"])
        assert served == ["clang", "clang", "rustc", "rustc"]

    def test_it_looks_no_further_than_told(self) -> None:
        inputs = ["rustc"] * 20 + ["clang"]
        assert self.served(settings(look_ahead=1), inputs) == inputs
        assert self.served(settings(look_ahead=4, max_passed_over=9), inputs)[0] == "rustc"

    def test_one_that_was_passed_over_often_enough_is_next(self) -> None:
        served = self.served(settings(max_passed_over=2), ["rustc", *["clang"] * 6])
        assert served.index("rustc") == 2

    def test_priority_comes_first(self) -> None:
        assert self.served(settings(), ["rustc", "clang"], [0, 1]) == ["rustc", "clang"]

    def test_it_can_be_switched_off(self) -> None:
        inputs = ["rustc", "clang", "rustc", "clang"]
        assert self.served(settings(enabled=False), inputs) == inputs


class FixedClock:
    def monotonic(self) -> float:
        return 0.0


async def put_directory(
    store: MemoryStore, files: Sequence[str] = (), directories: Sequence[tuple[str, Digest]] = ()
) -> Digest:
    content = Digest.of(b"content")
    directory = re_pb2.Directory(
        files=[re_pb2.FileNode(name=name, digest=content.to_proto()) for name in sorted(files)],
        directories=[re_pb2.DirectoryNode(name=name, digest=digest.to_proto()) for name, digest in sorted(directories)],
    )
    data = directory.SerializeToString()
    await store.write_many([(Digest.of(data), data), (content, b"content")])
    return Digest.of(data)


class TestNames:
    async def roots(self) -> tuple[InputRoots, list[Digest]]:
        store = MemoryStore()
        toolchain = await put_directory(store, [f"bin-{number}" for number in range(50)])
        roots = []
        for number in range(2):
            sources = await put_directory(store, [f"source-{number}"])
            external = await put_directory(store, [], [("clang", toolchain)])
            roots.append(await put_directory(store, [], [("external", external), ("src", sources)]))
        inputs = InputRoots(SchedulerSettings(), FixedClock())  # type: ignore[arg-type]
        for root in roots:
            await inputs.require("", store, root)
        return inputs, roots

    async def test_two_roots_with_one_toolchain_have_its_name_in_common(self) -> None:
        inputs, (one, two) = await self.roots()
        first, second = inputs.largest("", one), inputs.largest("", two)
        assert first[0] == second[0]
        assert set(first) != set(second)

    async def test_names_are_few(self) -> None:
        store = MemoryStore()
        parts = [(f"d{number}", await put_directory(store, [f"f{number}"])) for number in range(100)]
        root = await put_directory(store, [], parts)
        inputs = InputRoots(SchedulerSettings(), FixedClock())  # type: ignore[arg-type]
        await inputs.require("", store, root)
        assert len(inputs.largest("", root)) == MAX_PARTS

    async def test_what_is_not_remembered_has_no_name(self) -> None:
        inputs, (one, _two) = await self.roots()
        inputs.forget("")
        assert inputs.largest("", one) == ()
        assert inputs.largest("", Digest.of(b"unheard of")) == ()


@pytest.mark.parametrize(
    ("option", "value"), [("slack_slots", -1), ("max_passed_over", -1), ("look_ahead", 0), ("look_ahead", 65)]
)
def test_values_that_cannot_work_are_refused(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=option):
        AffinitySettings(**{option: value})  # type: ignore[arg-type]
