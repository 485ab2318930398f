"""One message of all that goes on."""

from __future__ import annotations

import pytest

from cas.digest import Digest
from protos.rexec.scheduler.v1 import status_pb2
from rexec.scheduler import events as e
from rexec.scheduler.category import Category
from rexec.scheduler.overview import MAX_INVOCATIONS, MAX_PLATFORMS, overview_of
from rexec.scheduler.platform import Requirement
from rexec.scheduler.price import PriceSettings
from rexec.scheduler.queue import Queue
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Owner, Usage
from tests.scheduler.rules import LINUX, Driver

GPU = frozenset({("gpu", "h100")})
ALICE = Owner("team", "alice", "build-1")
BOB = Owner("other", "bob", "build-2")
COMPILATION = Candidate("", Digest.of(b""), action_class="CppCompile/0")


def overview(driver: Driver, names: frozenset[str] | None = None) -> status_pb2.Overview:
    return overview_of(driver.queue.state, names, driver.now, driver.queue.reason)


def reasons(driver: Driver) -> dict[str, int]:
    return {reason.category: reason.tasks for reason in overview(driver).work.reasons}


def test_nothing_goes_on() -> None:
    shown = overview(Driver())
    assert not shown.platforms
    assert not shown.invocations
    assert not shown.HasField("price")
    assert {count.state: count.workers for count in shown.workers} == {1: 0, 2: 0, 3: 0, 4: 0}


def test_the_queue_is_told_by_platform_with_age_and_reason() -> None:
    driver = Driver()
    driver.attach(slots=2)
    for _ in range(5):
        driver.submit(pairs=LINUX, owner=ALICE)
    driver.pass_time(10)
    driver.submit(pairs=GPU, owner=BOB)
    driver.pass_time(1)
    shown = overview(driver)
    linux, gpu = shown.platforms
    assert (linux.tasks, linux.oldest_seconds, linux.workers, linux.slots) == (3, 11.0, 1, 2)
    assert [(asked.name, asked.value) for asked in gpu.properties] == [("gpu", "h100")]
    assert (gpu.tasks, gpu.oldest_seconds, gpu.workers) == (1, 1.0, 0)
    assert "gpu=h100" in gpu.reason
    assert "busy" in linux.reason
    assert (shown.work.waiting_tasks, shown.work.running_tasks) == (4, 2)
    assert (shown.work.queued_operations, shown.work.executing_operations) == (4, 2)


def test_every_kind_of_reason_is_told_apart() -> None:
    driver = Driver()
    first, _ = driver.attach("w1", credit=2), driver.attach("w2", pairs=GPU)
    driver.submit(pairs=LINUX)
    driver.submit(pairs=LINUX)  # fetched ahead
    driver.submit(pairs=LINUX)  # busy
    driver.submit(pairs=frozenset({("gpu", "a100")}))  # no worker
    driver.submit(pairs=LINUX, demand=Demand(slots=2))  # too large
    driver.submit(pairs=GPU)
    driver.submit(pairs=GPU)
    parked = driver.submit(pairs=LINUX)
    driver.do(e.WaiterLeft(parked))
    driver.do(e.Draining("w2-session"))
    assert reasons(driver) == {
        Category.NEXT: 1, Category.BUSY: 1, Category.NO_WORKER: 1, Category.TOO_LARGE: 1, Category.LEAVING: 1,
        Category.PARKED: 1,
    }  # fmt: skip
    assert first in driver.queue.fleet.workers


def test_workers_are_counted_by_state() -> None:
    driver = Driver()
    driver.attach("w1", slots=4)
    driver.do(e.Draining(driver.attach("w2", slots=2)))
    driver.do(e.WorkerDetached(driver.attach("w3", slots=8)))
    driver.submit()
    counts = {count.state: (count.workers, count.slots, count.busy_slots) for count in overview(driver).workers}
    assert counts == {
        status_pb2.READY: (1, 4, 1),
        status_pb2.DRAINING: (1, 2, 0),
        status_pb2.AWAY: (1, 8, 0),
        status_pb2.QUARANTINED: (0, 0, 0),
    }


def test_an_invocation_is_shown_with_what_it_had_and_when_it_is_done() -> None:
    driver = Driver(SchedulerSettings(price=PriceSettings(per_slot_hour=36.0, currency="EUR")))
    worker = driver.attach(slots=2)
    for _ in range(6):
        driver.submit(owner=ALICE)
    driver.pass_time(10)
    driver.finish(worker)
    driver.finish(worker)
    driver.credit(worker, 2)
    shown = overview(driver)
    (mine,) = shown.invocations
    assert (mine.owner.user, mine.owner.invocation, mine.first_seen_seconds) == ("alice", "build-1", 10.0)
    assert (mine.use.queued, mine.use.executing, mine.use.succeeded, mine.use.slots) == (2, 2, 2, 2)
    assert mine.use.slot_seconds == 20.0
    assert mine.use.cost == pytest.approx(0.2)
    assert mine.eta_seconds == pytest.approx(15.0)  # two wait and two are half done, ten seconds each, on two slots
    assert (shown.price.per_slot_hour, shown.price.currency) == (36.0, "EUR")
    assert [(tenant.tenant, tenant.use.slot_seconds) for tenant in shown.tenants] == [("team", 20.0)]


def test_what_was_learned_makes_the_expectation() -> None:
    driver = Driver()
    for _ in range(30):
        driver.queue.state.statistics.learn(COMPILATION, Usage(30.0))
    for _ in range(3):
        driver.submit(owner=ALICE, action_class="CppCompile/0")
    shown = overview(driver)
    assert shown.work.expected_slot_seconds == pytest.approx(90.0, rel=0.1)
    assert not shown.invocations[0].HasField("eta_seconds")  # it has no slot
    driver.attach(slots=3)
    driver.pass_time(12)
    assert overview(driver).invocations[0].eta_seconds == pytest.approx(18.0, rel=0.1)


def test_one_that_is_idle_comes_after_those_at_work() -> None:
    driver = Driver()
    worker = driver.attach()
    driver.submit(owner=BOB)
    driver.finish(worker)
    driver.pass_time(5)
    driver.submit(owner=ALICE)
    first, second = overview(driver).invocations
    assert (first.owner.user, first.idle_seconds) == ("alice", 0.0)
    assert (second.owner.user, second.idle_seconds) == ("bob", 5.0)


def test_who_may_see_one_instance_sees_nothing_of_others() -> None:
    driver = Driver()
    driver.attach("all", slots=2)
    driver.attach("theirs", instances=["other"])
    for _ in range(3):
        driver.submit(instance_name="main", owner=ALICE, pairs=LINUX)
    driver.submit(instance_name="other", owner=BOB, pairs=GPU)
    shown = overview(driver, frozenset({"main"}))
    assert [platform.instance_name for platform in shown.platforms] == ["main"]
    assert [invocation.owner.user for invocation in shown.invocations] == ["alice"]
    assert not shown.tenants
    assert (shown.work.waiting_tasks, shown.work.running_tasks) == (1, 2)
    assert {count.state: count.workers for count in shown.workers}[status_pb2.READY] == 1
    assert "bob" not in str(shown)
    assert "gpu" not in str(overview(driver, frozenset({"main"})))
    assert overview(driver, frozenset({"nothing"})).work == status_pb2.Work()


def test_an_overview_is_small_whatever_clients_do() -> None:
    settings = SchedulerSettings(known_properties=("x",))
    queue = Queue(settings, 0.0)
    many = MAX_INVOCATIONS + 10
    for number in range(many):
        pairs = frozenset({("x", f"{number}" * 1000), *(("x", f"{number}-{more}") for more in range(100))})
        owner = Owner("t" * 5000, "u" * 5000, f"{number}" * 3000)
        candidate = Candidate("", Digest.of(b"%d" % number), Requirement("", pairs), owner=owner)
        queue.apply(e.Submit(f"o{number}", f"t{number}", candidate), 0.0)
    shown = overview_of(queue.state, None, 1.0, queue.reason)
    assert (len(shown.platforms), shown.platforms_left_out) == (MAX_PLATFORMS, many - MAX_PLATFORMS)
    assert (len(shown.invocations), shown.invocations_left_out) == (MAX_INVOCATIONS, 10)
    assert shown.ByteSize() < 1 << 20
