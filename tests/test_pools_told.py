"""What an autoscaler tells of its pools the scheduler takes, whatever clients and workers have put into it."""

from __future__ import annotations

import pytest

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale import pool_report as said
from rexec.autoscale.fleet_view import FleetView, fleet_view
from rexec.autoscale.learned import Learned
from rexec.autoscale.pool_report import pool_report
from rexec.autoscale.provider import Machine, Phase
from rexec.autoscale.settings import PoolSettings
from rexec.autoscale.shape import MAX_IMAGES, allows
from rexec.autoscale.view import Offer
from rexec.scheduler import pool as taken
from rexec.scheduler.pool import Pattern, Pool, read_pools

MANY = {f"property-{number}": ["value"] for number in range(60)}


def images(number: int, tenant: str = "mallory") -> autoscaling_pb2.ToAutoscaler:
    """So many container images are asked for."""
    snapshot = autoscaling_pb2.ToAutoscaler()
    for image in range(number):
        work = snapshot.waiting.add(slots=1, tasks=1, slot_seconds=1.0, longest_seconds=1.0, tenant=tenant)
        work.properties.add(name="container-image", value=f"registry.example/{image}")
    return snapshot


def told(families: list[PoolSettings], view: FleetView) -> dict[str, Pool]:
    """What the scheduler makes of the report."""
    report = pool_report(families, view.pools, view.members, {}, {}, {})
    return {pool.name: pool for pool in read_pools(report)}


def test_both_sides_have_the_same_limits() -> None:
    assert said.MAX_PROPERTIES == taken.MAX_PROPERTIES
    assert said.MAX_ALL_PROPERTIES == taken.MAX_ALL_PROPERTIES
    assert said.MAX_CHARACTERS == taken.MAX_PROPERTY_CHARACTERS


def test_hundreds_of_images_of_pools_with_many_properties_do_not_end_the_stream() -> None:
    families = [
        PoolSettings(name="images", container_images=("registry.example/*",), properties=MANY),
        PoolSettings(name="plain", properties=MANY),
    ]
    pools = told(families, fleet_view(families, images(MAX_IMAGES), {}, Learned()))
    assert {("property-59", "value"), ("property-0", "value")} <= pools["plain"].offer.pairs
    assert pools["images"].takes("container-image", "registry.example/499")
    some = next(pool for name, pool in pools.items() if name.startswith("images-"))
    assert any(name == "container-image" for name, _value in some.offer.pairs)
    assert {name for name, _value in some.offer.pairs} > set(MANY), "a pool is told of whole or not at all"


def test_what_workers_offer_does_not_end_the_stream_either() -> None:
    families = [PoolSettings(name=f"pool-{number}") for number in range(150)]
    learned = Learned()
    for family in families:
        learned.attached(family.name, [Offer(frozenset((f"{number}", "x" * 4000) for number in range(100)))])
    learned.attached("pool-0", [Offer(frozenset({("", "x"), ("long", "x" * 5000), ("short", "x")}))])
    machines = {"a": Machine("a", "pool-0", 0.0, Phase.RUNNING)}
    pools = told(families, fleet_view(families, autoscaling_pb2.ToAutoscaler(), machines, learned))
    assert len(pools) == 150
    assert pools["pool-0"].takes("short", "x")


@pytest.mark.parametrize(
    ("image", "possible"),
    [
        ("registry.example:5000/team/gcc_12-x.y:1.2@sha256:" + "a" * 64, True),
        ("docker://Registry.Example/gcc:Latest", True),
        ("[::1]:5000/gcc", True),
        ("registry.example/" + "a" * 5000, False),
        ("registry.example/gcc\n", False),
        ("registry.example/gcc\nimage: evil", False),
        ("registry.example/$(reboot)", False),
        ("registry.example/a b", False),
        ("registry.example/team/../other/gcc", False),
        ("registry.example/\N{SNOWMAN}", False),
        ("-v/registry.example/gcc", False),
        ("docker://docker://gcc", False),
    ],
)
def test_what_cannot_be_an_image_is_refused_by_both_sides_whatever_the_patterns(image: str, possible: bool) -> None:
    assert allows(PoolSettings(name="images", container_images=("*",)), image) is possible
    assert Pattern("container-image", "*").matches("container-image", image) is possible


def test_the_same_text_is_no_image_where_another_property_has_it() -> None:
    assert Pattern("comment", "*").matches("comment", "two words\n")


def test_what_is_said_of_a_problem_is_short_and_no_terminal_obeys_it() -> None:
    families = [PoolSettings(name="plain")]
    view = fleet_view(families, autoscaling_pb2.ToAutoscaler(), {}, Learned())
    report = pool_report(families, view.pools, (), {}, {"plain": "\x1b[2Jno\x07 nodes\n\u202e" + "x" * 1_000_000}, {})
    assert report.ByteSize() < 5000
    (pool,) = read_pools(report)
    assert pool.problem.startswith("[2Jno nodes xxx")
    assert pool.problem.isprintable()
