"""What invocations and tenants are told that they have had: nothing forgotten, nothing twice, and not for ever."""

from __future__ import annotations

import pytest

from cas.digest import Digest
from cas.errors import Unavailable
from rexec.scheduler import events as e
from rexec.scheduler.accounts import (
    MAX_INVOCATIONS,
    MAX_TENANTS,
    OTHER_TENANTS,
    RETAIN_SECONDS,
    Meter,
    Tally,
    ending_of,
)
from rexec.scheduler.price import PoolPrice, PriceSettings
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Ending, Failure, Outcome, Owner
from tests.scheduler.rules import Driver

ALICE = Owner("team", "alice", "build-1")
BOB = Owner("team", "bob", "build-2")


def tally(driver: Driver, owner: Owner = ALICE) -> Tally:
    accounts = driver.queue.state.accounts
    return accounts.active.get(("", owner)) or accounts.idle[("", owner)]


def slot_seconds(driver: Driver, owner: Owner = ALICE) -> float:
    return tally(driver, owner).slot_seconds.total(driver.now)


def test_a_meter_sums_its_rate() -> None:
    meter = Meter()
    meter.change(2, 10.0)
    meter.change(-1, 15.0)
    assert (meter.total(15.0), meter.total(20.0)) == (10.0, 15.0)


def test_operations_are_counted_where_they_are() -> None:
    driver = Driver()
    worker = driver.attach()
    for _ in range(3):
        driver.submit(owner=ALICE)
    assert (tally(driver).queued, tally(driver).executing, tally(driver).slots) == (2, 1, 1)
    driver.finish(worker)
    driver.credit(worker, 1)
    assert (tally(driver).queued, tally(driver).executing) == (1, 1)
    assert tally(driver).ended[Ending.SUCCEEDED] == 1


def test_lost_leases_are_paid_for_too() -> None:
    driver = Driver()
    worker = driver.attach()
    driver.submit(owner=ALICE)
    driver.pass_time(5)
    driver.finish(worker, failure=Failure.INFRASTRUCTURE)
    driver.pass_time(1)
    other = driver.attach("w2")
    driver.pass_time(7)
    driver.finish(other)
    driver.pass_time(100)
    assert slot_seconds(driver) == pytest.approx(12.0)
    assert tally(driver).ended[Ending.SUCCEEDED] == 1


def test_a_lease_that_was_revoked_is_paid_for_until_the_worker_lets_go() -> None:
    driver = Driver()
    worker = driver.attach()
    name = driver.submit(owner=ALICE)
    driver.pass_time(2)
    driver.do(e.Cancel(name))
    driver.pass_time(3)
    driver.finish(worker, failure=Failure.REVOKED)
    driver.pass_time(50)
    assert slot_seconds(driver) == pytest.approx(5.0)
    assert tally(driver).ended[Ending.CANCELLED] == 1


def test_a_lease_takes_up_no_slot_while_it_is_only_fetched_ahead_or_being_settled() -> None:
    driver = Driver()
    worker = driver.attach(credit=2)
    driver.submit(owner=ALICE)
    driver.submit(owner=BOB)
    driver.pass_time(4)
    assert (slot_seconds(driver, ALICE), slot_seconds(driver, BOB)) == (4.0, 0.0)
    first, second = driver.leases(worker)
    driver.do(e.Reported(worker, first.lease_id, first.epoch))
    driver.do(e.Progress(worker, second.lease_id, second.epoch, running=True))
    driver.pass_time(3)
    assert (slot_seconds(driver, ALICE), slot_seconds(driver, BOB)) == (4.0, 3.0)


def test_several_slots_cost_several_times_as_much_and_a_pool_has_its_own_price() -> None:
    prices = PriceSettings(per_slot_hour=3600.0, pools=(PoolPrice(property="Pool=large", per_slot_hour=7200.0),))
    driver = Driver(SchedulerSettings(price=prices))
    plain = driver.attach(slots=2)
    driver.submit(owner=ALICE, demand=Demand(slots=2))
    driver.pass_time(10)
    driver.finish(plain)
    assert slot_seconds(driver) == 20.0
    assert tally(driver).cost.total(driver.now) == pytest.approx(20.0)
    driver.attach("large", pairs=frozenset({("Pool", "large")}))
    driver.submit(owner=ALICE, pairs=frozenset({("Pool", "large")}))
    driver.pass_time(10)
    assert tally(driver).cost.total(driver.now) == pytest.approx(40.0)


def test_who_joins_is_counted_and_pays_nothing() -> None:
    driver = Driver()
    worker = driver.attach()
    driver.submit("same", owner=ALICE)
    driver.submit("same", owner=BOB)
    driver.pass_time(6)
    driver.finish(worker)
    assert (slot_seconds(driver, ALICE), slot_seconds(driver, BOB)) == (6.0, 0.0)
    assert tally(driver, BOB).ended[Ending.SUCCEEDED] == 1
    both = driver.queue.state.accounts.tenants["team"]
    assert (both.ended[Ending.SUCCEEDED], both.slot_seconds.total(driver.now)) == (2, 6.0)


def test_hits_are_counted_without_a_slot() -> None:
    driver = Driver()
    candidate = Candidate("", Digest.of(b"hit"), owner=ALICE)
    driver.do(e.Record("hit", "task", candidate, Outcome(response="r", ending=Ending.CACHED)))
    assert (tally(driver).ended[Ending.CACHED], slot_seconds(driver)) == (1, 0.0)


def test_how_an_operation_ended() -> None:
    assert ending_of(Outcome(error=Unavailable("gone"))) is Ending.FAILED
    assert ending_of(Outcome(response="r", ending=Ending.FAILED)) is Ending.FAILED


def test_an_idle_invocation_is_forgotten_after_an_hour_and_a_busy_one_never() -> None:
    driver = Driver()
    worker = driver.attach()
    driver.submit(owner=ALICE)
    driver.finish(worker)
    driver.submit(owner=BOB)
    driver.pass_time(RETAIN_SECONDS + 1)
    driver.submit(owner=Owner("x", "y", "z"))
    driver.queue.state.accounts.forget_due(driver.now)
    assert set(driver.queue.state.accounts.active) == {("", BOB), ("", Owner("x", "y", "z"))}
    assert not driver.queue.state.accounts.idle


def test_ten_thousand_invocations_of_a_hostile_client_are_not_all_kept() -> None:
    driver = Driver()
    accounts = driver.queue.state.accounts
    for number in range(MAX_INVOCATIONS + 50):
        owner = Owner(f"tenant-{number}", "", str(number))
        record = e.Record(
            f"o{number}", f"t{number}", Candidate("", Digest.of(b""), owner=owner), Outcome(response="r")
        )  # fmt: skip
        driver.queue.apply(record, driver.now)
    assert len(accounts.idle) == MAX_INVOCATIONS
    assert ("", Owner("tenant-0", "", "0")) not in accounts.idle
    assert len(accounts.tenants) == MAX_TENANTS + 1
    assert sum(tenant.ended[Ending.SUCCEEDED] for tenant in accounts.tenants.values()) == MAX_INVOCATIONS + 50
    assert accounts.tenants[OTHER_TENANTS].ended[Ending.SUCCEEDED] == MAX_INVOCATIONS + 50 - MAX_TENANTS


def test_work_of_an_unknown_kind_takes_as_long_as_the_invocations_own_has() -> None:
    driver = Driver()
    worker = driver.attach()
    for _ in range(4):
        driver.submit(owner=ALICE)
    assert tally(driver).expected_left(driver.now, 0.0) is None
    assert tally(driver).expected_left(driver.now, 2.0) == 7.0  # three that wait, and one that is half done
    driver.pass_time(10)
    driver.finish(worker)
    driver.credit(worker, 1)
    assert tally(driver).expected_left(driver.now, 2.0) == pytest.approx(25.0)


@pytest.mark.parametrize("text", ["", "Pool", "=large"])
def test_a_pool_is_named_by_a_property(text: str) -> None:
    with pytest.raises(ValueError, match="expected NAME=VALUE"):
        PoolPrice(property=text, per_slot_hour=1.0)


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_is_a_number(price: float) -> None:
    with pytest.raises(ValueError, match="per_slot_hour is"):
        PriceSettings(per_slot_hour=price)


def test_a_currency_cannot_write_to_the_terminal() -> None:
    with pytest.raises(ValueError, match="printable"):
        PriceSettings(currency="\x1b[31m")
