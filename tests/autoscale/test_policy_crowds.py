"""Pools of container images that share a limit: one tenant with many images must not keep everybody else out."""

from __future__ import annotations

from rexec.autoscale.policy import decide
from rexec.autoscale.view import MemberState, PoolView, Waiting
from tests.autoscale.views import in_state, pool, ready, work


def images(*names: str, most: int) -> list[PoolView]:
    return [
        pool(name, family="images", family_max=most, max=most, slots=1, pairs=frozenset({("container-image", name)}))
        for name in names
    ]


def wanted(image: str, tenant: str, tasks: int = 1) -> Waiting:
    return work(tasks, 100, tenant=tenant, pairs=frozenset({("container-image", image)}))


def test_a_tenant_with_many_images_leaves_room_for_others() -> None:
    many = [f"a{number:03}" for number in range(100)]
    waiting = [*(wanted(image, "mallory") for image in many), wanted("z", "bob")]
    decisions = decide(images(*many, "z", most=10), waiting, [])
    assert sum(decision.start for decision in decisions.values()) == 10
    assert decisions["z"].start == 1


def test_workers_without_work_make_room_for_an_image_that_has_none() -> None:
    idle = [ready(f"{image}-1", image, slots=1, idle=20.0 + number) for number, image in enumerate("abc")]
    decisions = decide(images("a", "b", "c", "z", most=3), [wanted("z", "bob")], idle)
    assert decisions["z"].start == 0
    assert sum(len(decision.leave) for decision in decisions.values()) == 1


def test_one_that_leaves_makes_the_room_and_no_other_has_to() -> None:
    idle = [in_state(MemberState.LEAVING, "a-1", "a", slots=1), ready("b-1", "b", slots=1, idle=20.0)]
    decisions = decide(images("a", "b", "z", most=2), [wanted("z", "bob")], idle)
    assert [decision.leave for decision in decisions.values()] == [(), (), ()]


def test_workers_that_run_or_are_about_to_run_something_make_no_room() -> None:
    members = [
        ready("a-1", "a", slots=1, busy=1),
        ready("b-1", "b", slots=1, idle=1.0),
        ready("c-1", "c", slots=1, idle=20.0),
    ]
    decisions = decide(images("a", "b", "c", "z", most=3), [wanted("z", "bob"), wanted("c", "carol")], members)
    assert [decision.leave for decision in decisions.values()] == [(), (), (), ()]


def test_nobody_makes_room_while_there_is_some() -> None:
    members = [ready("a-1", "a", slots=1, idle=20.0)]
    decisions = decide(images("a", "z", most=2), [wanted("z", "bob")], members)
    assert (decisions["a"].leave, decisions["z"].start) == ((), 1)
