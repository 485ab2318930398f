"""Pools that an autoscaler tells of: what may be asked for, what those who wait are told, and how long that holds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.errors import MalformedRequest, NoWorkerFits
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler import events as e
from rexec.scheduler.category import Category, category_of
from rexec.scheduler.fairness_settings import FairnessSettings, ShareSettings
from rexec.scheduler.overview import MAX_POOLS, overview_of
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.pool import MAX_ALL_PROPERTIES, Pattern, Pool, read_pools
from rexec.scheduler.pool import MAX_POOLS as MOST_TOLD
from rexec.scheduler.pools import KEPT_SECONDS, MAX_KEPT_STREAMS, Pools
from rexec.scheduler.price import PriceSettings
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.snapshot import MAX_POOLS as MOST_COUNTED
from rexec.scheduler.snapshot import OTHER_POOLS, snapshot_of
from rexec.scheduler.task import Demand
from tests.scheduler.rules import LINUX, Driver

IMAGE = "registry.example.com/builder:1"
IMAGES = Pool("images", Offer(LINUX), (Pattern("container-image", "registry.example.com/*"),), max=5)
LINUX_POOL = Pool("linux", Offer(LINUX), slots=2, max=8)


def image(value: str) -> frozenset[tuple[str, str]]:
    return frozenset({("container-image", value)})


def told(driver: Driver, *pools: Pool, stream: str = "autoscaler") -> None:
    driver.queue.fleet.pools.tell(stream, pools)


def category(driver: Driver, name: str) -> Category:
    return category_of(driver.operation(name).task, driver.queue.fleet)


def settled(settings: SchedulerSettings | None = None) -> Driver:
    """Any worker has had the time to attach."""
    driver = Driver(settings)
    driver.pass_time(driver.settings.settle_seconds)
    return driver


# What may be asked for


def test_what_only_a_pool_offers_may_be_asked_for_though_no_worker_ever_did() -> None:
    driver = settled()
    ours = frozenset({("toolchain", "gcc-14")})
    with pytest.raises(NoWorkerFits):
        driver.submit(pairs=ours)
    told(driver, Pool("ours", Offer(ours), max=1))
    driver.submit(pairs=ours)
    with pytest.raises(NoWorkerFits, match=r"known are .*toolchain"):
        driver.submit(pairs=frozenset({("unheard-of", "x")}))


@pytest.mark.parametrize("value", [IMAGE, f"docker://{IMAGE}", "registry.example.com/"])
def test_an_image_that_fits_a_pattern_may_be_asked_for(value: str) -> None:
    driver = settled()
    told(driver, IMAGES)
    driver.submit(pairs=image(value) | LINUX)


@pytest.mark.parametrize("value", ["", "docker.io/x", "evil/registry.example.com/x", "docker://docker.io/x"])
def test_an_image_that_fits_none_is_refused_with_the_patterns(value: str) -> None:
    driver = settled()
    told(driver, IMAGES, LINUX_POOL)
    with pytest.raises(NoWorkerFits, match=r"no pool takes container-image=.*pool images takes registry\.example\.com"):
        driver.submit(pairs=image(value))
    driver.attach(pairs=LINUX | image(value))  # a worker that somebody has started himself
    driver.submit(pairs=image(value))


def test_a_pool_of_the_image_itself_counts_and_that_of_another_instance_does_not() -> None:
    driver = settled()
    narrow = msgspec.structs.replace(IMAGES, offer=Offer(LINUX, frozenset({"main"})))
    told(driver, narrow)
    driver.submit(pairs=image(IMAGE), instance_name="main")
    with pytest.raises(NoWorkerFits):
        driver.submit(pairs=image(IMAGE))
    told(driver, narrow, Pool("fixed", Offer(LINUX | image("docker.io/x")), max=1))
    driver.submit(pairs=image("docker.io/x"))


def test_values_of_other_properties_are_not_refused() -> None:
    driver = settled()
    told(driver, IMAGES)
    driver.submit(pairs=frozenset({("OSFamily", "windows")}))


def test_what_came_before_the_autoscaler_is_looked_at_when_workers_have_had_the_time_to_attach() -> None:
    driver = Driver()
    good, bad = driver.submit(pairs=image(IMAGE)), driver.submit(pairs=image("docker.io/x"))
    told(driver, IMAGES)
    driver.pass_time(driver.settings.settle_seconds)
    assert driver.operation(good).outcome is None
    outcome = driver.operation(bad).outcome
    assert outcome is not None
    assert isinstance(outcome.error, NoWorkerFits)


def test_after_a_restart_the_first_worker_says_nothing_of_the_autoscalers_pools() -> None:
    driver = Driver()
    driver.attach()
    with pytest.raises(NoWorkerFits):
        driver.submit(pairs=image(IMAGE))
    driver.queue.state.is_restart = True
    waits = driver.submit(pairs=image(IMAGE))
    driver.pass_time(driver.settings.settle_seconds)
    assert driver.operation(waits).outcome is not None


# What those who wait are told


@pytest.mark.parametrize(
    ("figures", "text", "kind"),
    [
        ({"target": 8, "ready": 3, "starting": 2, "start_seconds": 40.4},
         "pool linux growing 3 -> 8, 2 starting, one takes about 40s", Category.GROWING),
        ({"target": 1}, "pool linux growing 0 -> 1", Category.GROWING),
        ({"target": 3, "starting": 2, "problem": "0/3 nodes are available: insufficient nvidia.com/gpu"},
         "pool linux: 0/3 nodes are available: insufficient nvidia.com/gpu (2 starting)", Category.GROWING),
        ({}, "pool linux has no worker yet", Category.GROWING),
        ({"problem": "the budget of the day is spent"},
         "pool linux: the budget of the day is spent", Category.NO_WORKER),
        ({"max": 0}, "pool linux is at its maximum of 0 workers", Category.NO_WORKER),
        ({"target": 2, "ready": 2},
         "no worker is attached, though pool linux should have 2 that do", Category.NO_WORKER),
    ],
)  # fmt: skip
def test_a_task_without_any_worker_is_told_of_its_pool(figures: dict[str, Any], text: str, kind: Category) -> None:
    driver = Driver()
    name = driver.submit(pairs=LINUX)
    assert driver.reason(name) == "no worker is attached"
    told(driver, msgspec.structs.replace(LINUX_POOL, **figures))
    assert (driver.reason(name), category(driver, name)) == (text, kind)


@pytest.mark.parametrize(
    ("figures", "text", "kind"),
    [
        ({"target": 3, "ready": 1}, "pool linux growing 1 -> 3", Category.GROWING),
        ({"target": 1, "ready": 1, "max": 1},
         "pool linux is at its maximum of 1 worker; at most 1 actions come before it, 1 of them of the same invocation",
         Category.BUSY),
        ({"target": 1, "ready": 1, "problem": "quota exceeded"},
         "pool linux: quota exceeded; at most 1 actions come before it, 1 of them of the same invocation", Category.BUSY),
        ({"target": 1, "ready": 1},
         "all 1 slots that fit OSFamily=linux are busy;"
         " at most 1 actions come before it, 1 of them of the same invocation", Category.BUSY),
    ],
)  # fmt: skip
def test_a_task_that_waits_for_busy_workers_is_told_whether_there_will_be_more(
    figures: dict[str, Any], text: str, kind: Category
) -> None:
    driver = Driver()
    driver.attach()
    names = [driver.submit(pairs=LINUX) for _ in range(3)]
    told(driver, msgspec.structs.replace(LINUX_POOL, **figures))
    assert (driver.reason(names[2]), category(driver, names[2])) == (text, kind)


def test_what_no_pool_has_room_for_is_told_with_the_largest() -> None:
    driver = Driver()
    told(driver, msgspec.structs.replace(LINUX_POOL, offer=Offer(LINUX, cpu_millis=4000, memory_bytes=8 << 30)))
    name = driver.submit(pairs=LINUX, demand=Demand(1, 2000, 16 << 30))
    assert driver.reason(name) == (
        "no worker is attached; a worker of pool linux has slots=2, cpu=4, memory=8GiB,"
        " and the action asks for cpu=2, memory=16GiB"
    )
    assert category(driver, name) is Category.NO_WORKER
    other = driver.submit(pairs=frozenset({("OSFamily", "windows")}))
    assert driver.reason(other) == "no worker is attached, and no pool has such workers"


def test_of_several_pools_the_one_is_named_that_gives_most_hope() -> None:
    driver = Driver()
    name = driver.submit(pairs=LINUX)
    full = Pool("full", Offer(LINUX), max=1, target=1, ready=1)
    broken = Pool("broken", Offer(LINUX), max=3, target=2, problem="no nodes")
    told(driver, full, Pool("windows", Offer(frozenset({("OSFamily", "windows")})), max=3, target=3))
    assert driver.reason(name).endswith("though pool full should have 1 that do")
    told(driver, full, broken)
    assert driver.reason(name) == "pool broken: no nodes"
    told(driver, full, broken, msgspec.structs.replace(LINUX_POOL, target=2))
    assert driver.reason(name) == "pool linux growing 0 -> 2"


def test_a_limit_comes_before_a_pool_that_grows_for_others() -> None:
    driver = Driver(SchedulerSettings(fairness=FairnessSettings(tenant=ShareSettings(max_running=1))))
    driver.attach()
    driver.submit(pairs=LINUX)
    name = driver.submit(pairs=LINUX)
    told(driver, msgspec.structs.replace(LINUX_POOL, target=3, ready=1))
    assert category(driver, name) is Category.LIMIT


def test_the_log_is_not_told_of_what_a_pool_grows_for_unless_something_is_wrong() -> None:
    driver = Driver()
    told(driver, msgspec.structs.replace(LINUX_POOL, target=1))
    driver.submit(pairs=LINUX)
    driver.pass_time(200)
    assert not [effect for effect in driver.effects if isinstance(effect, e.TasksUnserved)]
    told(driver, msgspec.structs.replace(LINUX_POOL, target=1, problem="no nodes"))
    driver.pass_time(driver.settings.unserved_again_seconds)
    (unserved,) = [effect for effect in driver.effects if isinstance(effect, e.TasksUnserved)]
    assert unserved.reason == "pool linux: no nodes"


# How long it holds


def test_pools_are_remembered_for_a_while_after_their_autoscaler_has_gone() -> None:
    driver = settled()
    told(driver, IMAGES)
    name = driver.submit(pairs=image(IMAGE))
    pools = driver.queue.fleet.pools
    pools.left("autoscaler", driver.now)
    driver.submit(pairs=image(IMAGE))
    assert driver.reason(name) == "pool images: the autoscaler is away"
    assert category(driver, name) is Category.NO_WORKER
    pools.forget_due(driver.now + KEPT_SECONDS - 1)
    assert len(pools) == 1
    pools.forget_due(driver.now + KEPT_SECONDS)
    assert len(pools) == 0
    assert driver.reason(name) == "no worker is attached"
    with pytest.raises(NoWorkerFits):
        driver.submit(pairs=image(IMAGE))


def test_one_that_comes_back_takes_the_place_of_the_one_before() -> None:
    pools = Driver().queue.fleet.pools
    pools.tell("first", [LINUX_POOL, IMAGES])
    pools.left("first", 10.0)
    pools.tell("second", [msgspec.structs.replace(LINUX_POOL, target=3)])
    assert {pool.name: (pool.target, pool.away) for pool in pools} == {"linux": (3, False), "images": (0, True)}
    pools.tell("second", [LINUX_POOL, IMAGES])
    pools.left("second", 20.0)
    assert [pool.away for pool in pools] == [True, True]
    pools.forget_due(10.0 + KEPT_SECONDS)
    assert len(pools) == 2
    pools.forget_due(20.0 + KEPT_SECONDS)
    assert len(pools) == 0


def test_several_autoscalers_may_follow_and_of_one_name_the_last_word_counts() -> None:
    pools = Driver().queue.fleet.pools
    pools.tell("a", [LINUX_POOL])
    pools.tell("b", [msgspec.structs.replace(LINUX_POOL, max=3), IMAGES])
    assert {pool.name: pool.max for pool in pools} == {"linux": 3, "images": 5}
    pools.tell("a", [LINUX_POOL])
    assert {pool.name: pool.max for pool in pools} == {"linux": 8, "images": 5}


def test_one_that_comes_and_goes_all_the_time_fills_no_memory() -> None:
    pools = Driver().queue.fleet.pools
    for number in range(50):
        pools.tell(number, [Pool(f"pool-{number}")])
        pools.left(number, 1.0)
    assert len(pools) == MAX_KEPT_STREAMS


def test_nothing_is_found_anew_while_nothing_has_changed() -> None:
    pools = Driver().queue.fleet.pools
    pools.tell("a", [LINUX_POOL])
    generation = pools.generation
    pools.tell("a", [LINUX_POOL])
    assert pools.generation == generation
    pools.tell("a", [msgspec.structs.replace(LINUX_POOL, starting=1)])
    assert pools.generation != generation


# What they cost, and where they are shown


def test_a_slot_costs_what_its_pool_says_unless_a_price_is_configured() -> None:
    for settings, expected in ((PriceSettings(), 0.5), (PriceSettings(per_slot_hour=7.0), 7.0)):
        driver = Driver(SchedulerSettings(price=settings))
        everything = Pool("all", Offer(), slots=1, price_per_hour=9.0)
        told(driver, everything, msgspec.structs.replace(LINUX_POOL, price_per_hour=1.0), IMAGES)
        driver.attach()
        driver.submit(pairs=LINUX)
        driver.pass_time(3600)
        (tally,) = driver.queue.state.accounts.tenants.values()
        assert tally.cost.total(driver.now) == pytest.approx(expected)
        assert snapshot_of(driver.queue.state, driver.now).has_prices
        assert overview_of(driver.queue.state, None, driver.now, driver.queue.reason).HasField("price")


def test_pools_are_shown_to_those_whose_instances_they_serve() -> None:
    driver = Driver()
    told(
        driver,
        msgspec.structs.replace(IMAGES, problem="no nodes", target=2, ready=1, starting=1, leaving=3, cost_today=1.5),
        Pool("main", Offer(LINUX, frozenset({"main"}))),
    )
    everything = overview_of(driver.queue.state, None, driver.now, driver.queue.reason)
    images, _main = everything.pools
    assert (images.name, images.problem, images.target, images.ready) == ("images", "no nodes", 2, 1)
    assert (images.starting, images.leaving, images.max, images.cost_today) == (1, 3, 5, 1.5)
    assert [each.value for each in images.properties] == ["linux", "registry.example.com/*"]
    for names, seen in (({"main"}, ["images", "main"]), ({"other"}, ["images"])):
        shown = overview_of(driver.queue.state, frozenset(names), driver.now, driver.queue.reason)
        assert [pool.name for pool in shown.pools] == seen


def test_however_many_there_are_few_are_shown() -> None:
    driver = Driver()
    told(driver, *(Pool(f"pool-{number}", ready=1, cost_today=2.0) for number in range(300)))
    shown = overview_of(driver.queue.state, None, driver.now, driver.queue.reason)
    assert (len(shown.pools), shown.pools_left_out) == (MAX_POOLS, 300 - MAX_POOLS)
    loads = snapshot_of(driver.queue.state, driver.now).pools
    assert len(loads) == MOST_COUNTED + 1
    assert (loads[OTHER_POOLS].ready, loads[OTHER_POOLS].cost_today) == (200, 400.0)


# Hostile bytes


def prop(name: str, value: str) -> re_pb2.Platform.Property:
    return re_pb2.Platform.Property(name=name, value=value)


@pytest.mark.parametrize(
    "pools",
    [
        [autoscaling_pb2.Pool(name=f"p{number}") for number in range(MOST_TOLD + 1)],
        [autoscaling_pb2.Pool()],
        [autoscaling_pb2.Pool(name="x" * 101)],
        [autoscaling_pb2.Pool(name="a\nb")],
        [autoscaling_pb2.Pool(name="a"), autoscaling_pb2.Pool(name="a")],
        [autoscaling_pb2.Pool(name="a", properties=[prop("", "x")])],
        [autoscaling_pb2.Pool(name="a", properties=[prop("x", "y" * 5000)])],
        [autoscaling_pb2.Pool(name="a", properties=[prop("x", str(number)) for number in range(101)])],
        [autoscaling_pb2.Pool(name="a", patterns=[prop("x", "*" * 400)])],
        [autoscaling_pb2.Pool(name="a", instance_names=["x"] * 1001)],
        [
            autoscaling_pb2.Pool(name=f"p{number}", patterns=[prop("x", str(each)) for each in range(100)])
            for number in range(MAX_ALL_PROPERTIES // 100 + 1)
        ],
    ],
)
def test_pools_that_cannot_be_meant_are_refused(pools: list[autoscaling_pb2.Pool]) -> None:
    with pytest.raises(MalformedRequest):
        read_pools(autoscaling_pb2.Pools(pools=pools))


def test_figures_that_cannot_be_are_brought_into_their_bounds() -> None:
    said = autoscaling_pb2.Pool(
        name="a", slots=-4, cpu_millis=-1, memory_bytes=1 << 62, min=-1, max=2_000_000_000, target=-7, ready=-7,
        starting=-1, leaving=-1, problem="no\n nodes " * 1000, start_seconds=float("nan"), price_per_hour=-1.0,
        cost_today=float("inf"),
    )  # fmt: skip
    (pool,) = read_pools(autoscaling_pb2.Pools(pools=[said]))
    assert (pool.slots, pool.offer.cpu_millis, pool.min, pool.max, pool.target) == (1, 0, 0, 1_000_000, 0)
    assert (pool.start_seconds, pool.price_per_hour, pool.cost_today) == (0.0, 0.0, 0.0)
    assert len(pool.problem) == 300
    assert pool.problem.startswith("no nodes no nodes ")


@pytest.mark.parametrize("pattern", ["*" * 150, "[", "[!", "a[]", "(?P<x>", "*a" * 100])
def test_a_pattern_that_makes_no_sense_matches_nothing_and_takes_no_time(pattern: str) -> None:
    Pattern("x", pattern).matches("x", "a" * 4000 + "b")
    assert not Pattern("x", pattern).matches("y", pattern)


PAIRS = st.frozensets(st.tuples(st.sampled_from("ab"), st.sampled_from("xy*")))
PATTERNS = st.lists(st.builds(Pattern, st.sampled_from("ab"), st.sampled_from(["x", "?", "z"])), max_size=2).map(tuple)
OFFERED = st.lists(st.tuples(PAIRS, PATTERNS, st.integers(1, 3)), max_size=6)


@given(PAIRS, OFFERED)
def test_of_many_pools_only_those_that_cannot_fit_are_not_looked_at(
    asked: frozenset[tuple[str, str]], offered: list[tuple[frozenset[tuple[str, str]], tuple[Pattern, ...], int]]
) -> None:
    said = [
        Pool(str(number), Offer(pairs, memory_bytes=slots), patterns, slots)
        for number, (pairs, patterns, slots) in enumerate(offered)
    ]
    pools, requirement = Pools(), Requirement(pairs=asked)
    pools.tell("autoscaler", said)
    fitting = [pool for pool in said if pool.fits(requirement)]
    assert pools.largest(requirement) == max(fitting, key=lambda pool: pool.slots, default=None)
    assert pools.least_memory_bytes(requirement) == min((pool.slots for pool in fitting), default=0)
