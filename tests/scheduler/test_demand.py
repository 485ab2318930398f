"""What an autoscaler is told of the queue."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cas.digest import Digest
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.scheduler import events as e
from rexec.scheduler.demand import MAX_GROUPS, UNKNOWN_SECONDS, demand_of
from rexec.scheduler.fairness_settings import FairnessSettings, ShareSettings
from rexec.scheduler.platform import Offer
from rexec.scheduler.pool import Pool
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Owner, Usage
from tests.scheduler.rules import LINUX, Driver

ALICE = Owner("team", "alice", "build-1")
ALICE_AGAIN = Owner("team", "alice", "build-2")
BOB = Owner("other", "bob", "build-3")
GPU = frozenset({("gpu", "h100")})


def demand(driver: Driver) -> autoscaling_pb2.ToAutoscaler:
    return demand_of(driver.queue.state, driver.now)


def learned(driver: Driver, action_class: str, seconds: float, peak_memory_bytes: int = 0) -> None:
    candidate = Candidate("", Digest.of(b""), action_class=action_class)
    driver.queue.state.statistics.learn(candidate, Usage(seconds, peak_memory_bytes))


def waiting(driver: Driver) -> int:
    return sum(group.tasks for group in demand(driver).waiting)


def test_nothing_waits_and_nobody_works() -> None:
    assert demand(Driver()) == autoscaling_pb2.ToAutoscaler()


def test_what_waits_is_grouped_by_platform_size_and_tenant() -> None:
    driver = Driver()
    learned(driver, "compile", 4.0)
    learned(driver, "link", 60.0)
    for owner, action_class in ((ALICE, "compile"), (ALICE_AGAIN, "link"), (BOB, "compile")):
        driver.submit(pairs=LINUX, owner=owner, action_class=action_class)
    driver.pass_time(5)
    driver.submit(pairs=LINUX, owner=ALICE, action_class="compile")
    driver.submit(pairs=LINUX, owner=ALICE, demand=Demand(2, 3000, 4 << 30), action_class="link")
    driver.submit(pairs=GPU, instance_name="main", owner=ALICE)
    small, others, large, gpu = sorted(
        demand(driver).waiting, key=lambda group: (group.properties[0].name == "gpu", group.slots, -group.tasks)
    )
    assert (small.tenant, small.tasks, small.slots, small.slot_seconds) == ("team", 3, 1, 68.0)
    assert (small.longest_seconds, small.oldest_seconds, small.limited_tasks) == (60.0, 5.0, 0)
    assert (others.tenant, others.tasks) == ("other", 1)
    assert (large.slots, large.cpu_millis, large.memory_bytes) == (2, 3000, 4 << 30)
    assert (large.tasks, large.slot_seconds, large.longest_seconds) == (1, 120.0, 60.0)
    assert (gpu.instance_name, gpu.properties[0].value) == ("main", "h100")
    assert gpu.slot_seconds == pytest.approx(driver.queue.state.statistics.mean_seconds)


def test_of_what_never_ran_it_is_said_what_actions_take_on_the_mean_or_a_guess() -> None:
    driver = Driver()
    driver.submit(pairs=LINUX, action_class="new")
    assert [group.slot_seconds for group in demand(driver).waiting] == [UNKNOWN_SECONDS]
    learned(driver, "old", 3.0)
    assert [group.longest_seconds for group in demand(driver).waiting] == [3.0]


def test_a_lease_that_is_fetched_ahead_still_wants_a_slot() -> None:
    driver = Driver()
    worker = driver.attach(credit=2)
    driver.submit(pairs=LINUX, owner=ALICE)
    driver.submit(pairs=LINUX, owner=BOB)
    told = demand(driver)
    assert [(group.tenant, group.tasks) for group in told.waiting] == [("other", 1)]
    assert (told.workers[0].leases, told.workers[0].busy_slots) == (2, 1)
    assert [(each.tenant, each.slots) for each in told.workers[0].tenants] == [("team", 1)]
    driver.finish(worker)
    assert not demand(driver).waiting


def test_what_nobody_waits_for_wants_no_worker() -> None:
    driver = Driver()
    name = driver.submit(pairs=LINUX)
    assert waiting(driver) == 1
    driver.do(e.WaiterLeft(name))
    assert waiting(driver) == 0


def limited_to(running: int, **more: Any) -> Driver:
    fairness = FairnessSettings(tenant=ShareSettings(max_running=running), **more)
    return Driver(SchedulerSettings(fairness=fairness))


def test_what_a_limit_keeps_from_running_is_told_apart() -> None:
    driver = limited_to(3)
    for number in range(10):
        driver.submit(pairs=LINUX if number % 2 else GPU, owner=ALICE)
    driver.submit(pairs=LINUX, owner=BOB)
    told = demand(driver)
    assert sum(group.tasks - group.limited_tasks for group in told.waiting if group.tenant == "team") == 3
    assert sum(group.limited_tasks for group in told.waiting if group.tenant == "other") == 0
    driver.attach(slots=3)
    told = demand(driver)  # two of the three run, and what is the others'
    assert sum(group.tasks - group.limited_tasks for group in told.waiting if group.tenant == "team") == 1


def test_the_narrowest_of_several_limits_counts() -> None:
    driver = limited_to(5, invocation=ShareSettings(max_running=2))
    for owner in (ALICE, ALICE_AGAIN, Owner("team", "carol", "build-4")):
        for _ in range(4):
            driver.submit(pairs=LINUX, owner=owner)
    (group,) = demand(driver).waiting
    assert (group.tasks, group.limited_tasks) == (12, 7)


def test_what_somebody_else_waits_for_too_is_not_limited() -> None:
    driver = limited_to(1)
    driver.attach()
    driver.submit(pairs=LINUX, owner=ALICE)
    driver.submit("shared", pairs=GPU, owner=ALICE)
    assert [group.limited_tasks for group in demand(driver).waiting] == [1]
    driver.submit("shared", pairs=GPU, owner=BOB)
    assert [group.limited_tasks for group in demand(driver).waiting] == [0]


def test_memory_that_is_only_expected_rules_no_pool_out() -> None:
    driver = Driver()
    driver.attach(memory_bytes=1 << 30, credit=0)
    learned(driver, "link", 1.0, 6 << 30)
    driver.submit(pairs=LINUX, action_class="link")
    assert [group.memory_bytes for group in demand(driver).waiting] == [0]
    pool = Pool("small", Offer(LINUX, memory_bytes=4 << 30))
    driver.queue.fleet.pools.tell("autoscaler", [pool, Pool("other", Offer(GPU, memory_bytes=1))])
    assert [group.memory_bytes for group in demand(driver).waiting] == [4 << 30]


def test_workers_are_told_with_what_they_do() -> None:
    driver = Driver()
    learned(driver, "link", 60.0)
    driver.attach("a", slots=2)
    driver.attach("b", slots=4, credit=0)
    driver.attach("c", pairs=GPU)
    driver.pass_time(7)
    driver.submit(pairs=LINUX, owner=ALICE, action_class="link")
    driver.submit(pairs=GPU, owner=BOB)
    driver.pass_time(20)
    driver.do(e.Draining("c-session", "old"))
    driver.do(e.WorkerDetached("c-session"))
    told = demand(driver)
    a, b, c = told.workers
    assert (a.name, a.worker_id, a.slots, a.busy_slots, a.leases, a.idle_seconds) == ("a", "a-session", 2, 1, 1, 0.0)
    assert a.rest_seconds == 40.0
    assert (b.busy_slots, b.leases, b.idle_seconds, b.rest_seconds) == (0, 0, 27.0, 0.0)
    assert (c.busy_slots, c.draining, c.away, c.rest_seconds) == (1, True, True, 0.0)
    assert a.offer == b.offer != c.offer
    assert [(each.name, each.value) for each in told.offers[c.offer].properties] == [("gpu", "h100")]
    assert {tenant.tenant: (tenant.slots, tenant.slot_seconds) for tenant in told.tenants} == {
        "team": (1, 20.0),
        "other": (1, 20.0),
    }


def test_a_worker_is_idle_since_its_last_lease_has_ended() -> None:
    driver = Driver()
    worker = driver.attach(slots=2)
    driver.submit(pairs=LINUX)
    driver.submit(pairs=LINUX)
    driver.pass_time(3)
    driver.finish(worker)
    driver.pass_time(3)
    assert demand(driver).workers[0].idle_seconds == 0
    driver.finish(worker)
    driver.pass_time(5)
    assert demand(driver).workers[0].idle_seconds == 5
    driver.do(e.WorkerDetached(worker))
    driver.attach(slots=2)  # the same session comes back
    assert demand(driver).workers[0].idle_seconds == 5


def test_a_message_is_bounded_and_no_tenant_crowds_the_others_out() -> None:
    driver = Driver(SchedulerSettings(max_kinds=10_000))
    for number in range(MAX_GROUPS + 20):
        driver.queue.apply(submission(number, ALICE, 2), driver.now)
        driver.queue.apply(submission(number, ALICE, 2, "again"), driver.now)
    driver.queue.apply(submission(0, BOB, 1), driver.now)
    told = demand(driver)
    assert len(told.waiting) == MAX_GROUPS
    assert told.tasks_left_out == 2 * 21
    assert [group.tasks for group in told.waiting if group.tenant == "other"] == [1]


def submission(number: int, owner: Owner, slots: int, more: str = "") -> e.Submit:
    name = f"{owner.tenant}-{number}-{more}"
    return e.Submit(
        name, f"task {name}", Candidate("", Digest.of(name.encode()), owner=owner, demand=Demand(slots, number + 1))
    )


def test_what_is_too_long_to_be_told_is_left_out() -> None:
    driver = Driver()
    driver.submit(pairs=frozenset({("OSFamily", "x" * 10_000)}))
    driver.submit(pairs=LINUX)
    told = demand(driver)
    assert (len(told.waiting), told.tasks_left_out) == (1, 1)
    for number in range(30):
        large = {(f"p{count}", f"{number}" * 4000) for count in range(10)}
        driver.attach(f"w{number}", pairs=frozenset(large))
    told = demand(driver)
    assert len(told.workers) == len(told.offers) == 30
    assert told.ByteSize() < 2 << 20


def test_all_that_waits_is_told_whatever_happens() -> None:
    draw = random.Random(1)
    driver = limited_to(4)
    names: list[str] = []
    for step in range(400):
        match draw.randrange(6):
            case 0 | 1:
                owner = draw.choice((ALICE, ALICE_AGAIN, BOB))
                names.append(
                    driver.submit(pairs=draw.choice((LINUX, GPU)), owner=owner, demand=Demand(draw.choice((1, 2))))
                )
            case 2:
                driver.attach(f"w{step}", slots=2, credit=3)
            case 3 if driver.queue.fleet.workers:
                worker = draw.choice(list(driver.queue.fleet.workers))
                if driver.leases(worker):
                    driver.finish(worker)
                driver.credit(worker, 2)
            case 4 if driver.queue.fleet.workers:
                driver.do(e.WorkerDetached(draw.choice(list(driver.queue.fleet.workers))))
            case _:
                driver.pass_time(draw.random() * 5)
        told = demand(driver)
        state = driver.queue.state
        in_line = sum(task.place is not None for task in state.tasks.values())
        ahead = sum(not lease.started and lease.use is not None for lease in state.leases.values())
        assert in_line <= sum(group.tasks for group in told.waiting) <= in_line + ahead
        assert all(0 <= group.limited_tasks <= group.tasks for group in told.waiting)
        assert len(told.workers) == len(state.fleet.workers)
        for shown in told.workers:
            assert shown.busy_slots == sum(each.slots for each in shown.tenants) <= shown.slots
