"""What a configuration of pools may say. Whatever is taken can be told to a scheduler, and to a cluster."""

from __future__ import annotations

from typing import Any

import pytest

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.fleet_view import fleet_view
from rexec.autoscale.learned import Learned
from rexec.autoscale.pool_report import pool_report
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings
from rexec.autoscale.shape import image_pool
from tests.autoscale.fleet import pool

LIMITS: list[tuple[str, Any, Any]] = [
    ("slots", 4096, 4097),
    ("cpu", 100_000.0, 1e300),
    ("cpu", 0.0, float("nan")),
    ("memory_bytes", 1 << 50, 1 << 70),
    ("memory_bytes", 0, -1),
    ("disk_bytes", 1 << 50, (1 << 50) + 1),
    ("drain_seconds", 7 * 86400.0, 7 * 86400.5),
    ("start_seconds", 86400.0, 1e300),
    ("start_timeout_seconds", 1.0, 1e-9),
    ("idle_seconds", 0.0, float("inf")),
    ("target_wait_seconds", 0.001, 1e-300),
    ("price_per_hour", 1e6, 1e308),
    ("max", 10_000, 10_001),
    ("image", "example.com/rexec:1", "example.com/rexec:1\nx"),
    ("image", "", " example.com/rexec:1"),
    ("container_images", ("*",), ("",)),
    ("container_images", ("x" * 255,), ("x" * 256,)),
    ("container_images", ("[",), tuple(str(number) for number in range(101))),
    ("instance_names", ("",), tuple(str(number) for number in range(101))),
    ("properties", {"p": ["x"] * 100}, {"p": ["x"] * 101}),
    ("properties", {"p": ["x" * 4095]}, {"p": ["x" * 4096]}),
    ("properties", {"p": [""]}, {"": ["x"]}),
]


@pytest.mark.parametrize(("name", "taken", "refused"), LIMITS)
def test_a_value_that_cannot_be_meant_is_refused_by_its_name(name: str, taken: Any, refused: Any) -> None:
    settings = pool(**{name: taken})
    with pytest.raises(ValueError, match=rf"^{name} "):
        pool(**{name: refused})
    view = fleet_view([settings], autoscaling_pb2.ToAutoscaler(), {}, Learned())
    (said,) = pool_report([settings], view.pools, (), {}, {}, {}).pools
    assert said.name == "cpp"


def test_a_pool_of_images_with_all_the_properties_it_may_have_makes_pools_of_images() -> None:
    family = pool(container_images=("*",), properties={f"p{number}": ["x"] for number in range(100)})
    assert image_pool(family, "gcc:12").settings.properties["container-image"][0] == "gcc:12"


@pytest.mark.parametrize(
    ("pools", "problem"),
    [
        ([pool("a"), pool("a")], "'a' twice"),
        ([pool(f"pool-{number}") for number in range(401)], "401 pools"),
        ([pool(f"pool-{number}", container_images=("*",) * 100) for number in range(21)], "2100 container_images"),
        ([pool("images-0123456789abcdef"), pool("images", container_images=("*",))], "no image of pool 'images'"),
        ([pool("a", container_images=("*",), properties={"container-image": ["x"]})], "'container-image'"),
    ],
)
def test_pools_that_stand_in_each_others_way_are_refused(pools: list[PoolSettings], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        AutoscaleSettings(pools=tuple(pools))
