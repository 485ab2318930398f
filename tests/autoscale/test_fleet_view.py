"""What the policy is shown of the scheduler's words, the machines and the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.fleet_view import FleetView, fleet_view, offers_by_pool
from rexec.autoscale.learned import REMEMBERED, Learned
from rexec.autoscale.matching import fits
from rexec.autoscale.pool_report import MAX_PROPERTIES, pool_report
from rexec.autoscale.provider import Machine, Phase
from rexec.autoscale.settings import PoolKind, PoolSettings
from rexec.autoscale.shape import ASSUMED, MAX_IMAGES, Shape, allows
from rexec.autoscale.view import MemberState, Offer
from rexec.worker.machine import properties_of_machine
from tests.autoscale.fleet import offered, pool, waiting


def seen(
    families: Sequence[PoolSettings],
    machines: Mapping[str, Machine] | None = None,
    learned: Learned | None = None,
    **options: Any,
) -> FleetView:
    snapshot = autoscaling_pb2.ToAutoscaler(
        waiting=options.pop("waiting", ()), workers=options.pop("workers", ()), offers=options.pop("offers", ())
    )
    return fleet_view(families, snapshot, machines or {}, learned or Learned(), wall=1000.0, **options)


def machine(name: str = "cpp-1", pool: str = "cpp", phase: Phase = Phase.RUNNING, **fields: Any) -> Machine:
    return Machine(name, pool, fields.pop("created_at", 990.0), phase, **fields)


def attached(name: str = "cpp-1", /, **fields: Any) -> autoscaling_pb2.AttachedWorker:
    return autoscaling_pb2.AttachedWorker(name=name, slots=1, **fields)


def test_what_is_assumed_of_a_worker_is_what_one_on_this_kind_of_machine_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert {name: sorted(values) for name, values in ASSUMED.items()} == {
        name: sorted(values) for name, values in properties_of_machine().items()
    }


def test_configured_properties_take_the_place_of_assumed_ones() -> None:
    (view,) = seen([pool(properties={"ISA": ["aarch64"], "gcc": ["12", "13"]})]).pools
    assert {value for name, value in view.offer.pairs if name == "ISA"} == {"aarch64"}
    assert {("gcc", "12"), ("gcc", "13"), ("OSFamily", "linux"), ("Arch", "amd64")} <= view.offer.pairs


def test_a_pod_without_sizes_has_a_core_and_two_gib_for_each_slot() -> None:
    (view,) = seen([pool(slots=4)]).pools
    assert (view.offer.slots, view.offer.cpu_millis, view.offer.memory_bytes) == (4, 4000, 8 << 30)
    (view,) = seen([pool(slots=4, cpu=2.5, memory_bytes=1 << 30)]).pools
    assert (view.offer.cpu_millis, view.offer.memory_bytes) == (2500, 1 << 29)
    (view,) = seen([pool(kind=PoolKind.LOCAL)]).pools
    assert (view.offer.cpu_millis, view.offer.memory_bytes) == (0, 0), "not known"


def test_tasks_at_a_limit_of_their_tenant_want_no_worker() -> None:
    work = waiting(10, 6.0)
    work.limited_tasks = 4
    (shown,) = seen([pool()], waiting=[work]).waiting
    assert (shown.tasks, shown.slot_seconds) == (6, 36.0)
    work.limited_tasks = 10
    assert seen([pool()], waiting=[work]).waiting == ()


@pytest.mark.parametrize(
    ("phase", "worker", "came", "asked", "state"),
    [
        (Phase.WAITING, None, False, False, MemberState.STARTING),
        (Phase.RUNNING, None, False, False, MemberState.STARTING),
        (Phase.RUNNING, None, True, False, MemberState.AWAY),
        (Phase.RUNNING, {}, True, False, MemberState.READY),
        (Phase.RUNNING, {"draining": True}, True, False, MemberState.LEAVING),
        (Phase.RUNNING, {"away": True}, True, False, MemberState.AWAY),
        (Phase.RUNNING, {"quarantined": True}, True, False, MemberState.AWAY),
        (Phase.RUNNING, {}, True, True, MemberState.LEAVING),
        (Phase.LEAVING, {}, True, False, MemberState.LEAVING),
        (Phase.LEAVING, None, False, False, MemberState.LEAVING),
    ],
)
def test_the_state_of_a_machine(
    phase: Phase, worker: dict[str, bool] | None, came: bool, asked: bool, state: MemberState
) -> None:
    view = seen(
        [pool()],
        {"cpp-1": machine(phase=phase)},
        workers=[attached(**worker)] if worker is not None else [],
        attached={"cpp-1"} if came else set(),
        leaving={"cpp-1"} if asked else set(),
    )
    assert [(member.name, member.state) for member in view.members] == [("cpp-1", state)]


def test_machines_that_have_ended_and_workers_of_others_are_no_members() -> None:
    view = seen([pool()], {"cpp-1": machine(phase=Phase.ENDED)}, workers=[attached(), attached("somebody")])
    assert view.members == ()


def test_a_worker_with_leases_fetched_ahead_is_not_idle() -> None:
    view = seen([pool()], {"cpp-1": machine()}, workers=[attached(leases=1, idle_seconds=50)])
    assert (view.members[0].busy_slots, view.members[0].idle_seconds) == (1, 0.0)


def test_idle_workers_get_more_idle_while_nothing_is_heard() -> None:
    view = seen([pool()], {"cpp-1": machine()}, workers=[attached(idle_seconds=50)], snapshot_age_seconds=4)
    assert view.members[0].idle_seconds == 54


def test_a_member_is_as_old_as_its_machine_and_never_younger_than_now() -> None:
    machines = {"cpp-1": machine(), "cpp-2": machine("cpp-2", created_at=2000.0)}
    ages = {member.name: member.age_seconds for member in seen([pool()], machines).members}
    assert ages == {"cpp-1": 10.0, "cpp-2": 0.0}


def test_what_workers_offered_counts_while_there_are_none() -> None:
    learned = Learned()
    learned.attached("cpp", [Offer(frozenset({("gcc", "12"), ("cores", "8")}), slots=1, cpu_millis=8000)])
    (view,) = seen([pool(properties={"cache": ["warm"]})], learned=learned).pools
    assert {("gcc", "12"), ("cache", "warm")} <= view.offer.pairs
    assert view.offer.cpu_millis == 8000


def test_a_worker_cannot_make_its_pool_offer_other_images_than_its_own() -> None:
    family = pool("images", container_images=("*",), properties={"cache": ["warm"]})
    snapshot = [waiting(1, 1, {"container-image": "mine"})]
    (mine,) = seen([family], waiting=snapshot).pools
    learned = Learned()
    learned.attached(mine.name, [Offer(frozenset({("container-image", "*"), ("cache", "*"), ("gcc", "12")}))])
    (again,) = seen([family], waiting=snapshot, learned=learned).pools
    assert again.offer.pairs == mine.offer.pairs | {("gcc", "12")}


def test_no_worker_is_believed_to_take_longer_than_it_may() -> None:
    learned = Learned()
    learned.started("cpp", 86_400.0)
    (view,) = seen([pool(start_timeout_seconds=300)], learned=learned).pools
    assert view.start_seconds == 300


def test_only_what_all_workers_of_a_pool_have_is_learned() -> None:
    view = seen(
        [pool()],
        {"cpp-1": machine(), "cpp-2": machine("cpp-2"), "cpp-3": machine("cpp-3")},
        workers=[attached(offer=0), attached("cpp-2", offer=1), attached("cpp-3", offer=7)],
    )
    snapshot = autoscaling_pb2.ToAutoscaler(
        offers=[
            offered({"gcc": "12", "cores": "8"}, cpu_millis=8000, memory_bytes=10),
            offered({"gcc": "12", "cores": "4"}, cpu_millis=4000, memory_bytes=20),
        ]
    )
    learned = Learned()
    learned.attached("cpp", offers_by_pool(view, snapshot, {"cpp": 1})["cpp"])
    offer = learned.offer("cpp")
    assert offer is not None
    assert offer.pairs == {("gcc", "12")}
    assert (offer.cpu_millis, offer.memory_bytes) == (4000, 10)


def test_how_long_workers_take_is_the_mean_of_the_last_ones() -> None:
    learned = Learned()
    assert learned.start_seconds("cpp", 10.0) == 10.0
    for seconds in [100.0, *[4.0] * REMEMBERED]:
        learned.started("cpp", seconds)
    assert learned.start_seconds("cpp", 10.0) == 4.0
    learned.keep(["other"])
    assert learned.start_seconds("cpp", 10.0) == 10.0


@pytest.mark.parametrize(
    ("image", "allowed"),
    [
        ("registry.example/gcc:12", True),
        ("docker://registry.example/gcc:12", True),
        ("docker://other.example/gcc:12", False),
        ("REGISTRY.example/gcc:12", False),
        ("docker://", False),
        ("", False),
    ],
)
def test_patterns_are_of_the_image_without_its_scheme(image: str, allowed: bool) -> None:
    assert allows(pool(container_images=("registry.example/*",)), image) is allowed


def test_two_ways_to_write_an_image_are_one_pool_whose_workers_offer_both() -> None:
    work = [waiting(1, 1, {"container-image": image}) for image in ("a", "docker://a", "a")]
    machines = {name: machine(name, "images", image=image) for name, image in (("i-1", "a"), ("i-2", "docker://a"))}
    view = seen([pool("images", container_images=("*",))], machines, waiting=work)
    (shape,) = view.shapes.values()
    assert shape.image == "a"
    assert {member.pool for member in view.members} == {shape.name}
    (each,) = view.pools
    assert {value for name, value in each.offer.pairs if name == "container-image"} == {"a", "docker://a"}
    assert all(fits(waits, each.offer) for waits in view.waiting)


def test_somebody_who_asks_for_thousands_of_images_makes_only_so_many_pools() -> None:
    work = [waiting(1, 1, {"container-image": f"image-{number}"}) for number in range(MAX_IMAGES + 100)]
    running = machine("images-x", "images", image="old")
    view = seen([pool("images", container_images=("*",))], {"images-x": running}, waiting=work)
    assert len(view.shapes) == MAX_IMAGES
    assert "old" in {shape.image for shape in view.shapes.values()}


def test_a_machine_whose_entry_has_changed_belongs_to_no_pool() -> None:
    machines = {"a": machine("a", "gone"), "b": machine("b", "cpp", image="x"), "c": machine("c", "images")}
    assert seen([pool("cpp"), pool("images", container_images=("*",))], machines).members == ()


def test_the_report_of_a_pool_holds_no_more_properties_than_the_scheduler_takes() -> None:
    learned = Learned()
    learned.attached("cpp", [Offer(frozenset((f"a{number}", "x") for number in range(500)))])
    settings = pool(properties={"zz": ["mine"]}, max=4)
    view = seen([settings], {"cpp-1": machine()}, learned, workers=[attached(), attached("cpp-2")])
    report = pool_report(
        [settings], view.pools, view.members, {"cpp": PoolDecision(target=2)}, {"cpp": "no"}, {"cpp": 1}
    )
    (said,) = report.pools
    assert len(said.properties) == MAX_PROPERTIES
    assert ("zz", "mine") in {(each.name, each.value) for each in said.properties}
    assert (said.target, said.ready, said.max, said.problem, said.cost_today) == (2, 1, 4, "no", 1.0)


def test_the_pool_of_an_image_carries_the_name_of_its_entry_to_the_provider() -> None:
    settings = pool("x" * 40, container_images=("*",))
    view = seen([settings], waiting=[waiting(1, 1, {"container-image": "a"})])
    (shape,) = view.shapes.values()
    assert isinstance(shape, Shape)
    assert shape.settings.name == "x" * 40
    assert len(shape.name) + len("-abcde") <= 63, "the name of a pod"
