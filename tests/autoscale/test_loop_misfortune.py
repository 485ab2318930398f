"""The loop when everything goes wrong: workers that end as soon as they have come, that do not go, a clock that jumps, and a
ledger that cannot be read."""

from __future__ import annotations

import signal

import pytest

from rexec.autoscale.life import STAYS_GRACE_SECONDS, STAYS_SECONDS
from rexec.autoscale.provider import Phase
from rexec.autoscale.settings import TenantBudget
from rexec.autoscale.spending import Spending
from tests.autoscale.fleet import Fleet, Ledger, pool, waiting

DAY = 86_400.0


async def crash(fleet: Fleet, exit_code: int) -> None:
    """Whatever has been started comes, and ends at once."""
    for name in fleet.names:
        await fleet.attach(name)
        fleet.workers.clear()
        fleet.machines.change(name, phase=Phase.ENDED, exit_code=exit_code)
        await fleet.heard()


@pytest.mark.parametrize("exit_code", [0, 128 + signal.SIGSEGV])
async def test_workers_that_end_as_soon_as_they_have_come_are_tried_ever_more_rarely(exit_code: int) -> None:
    fleet = Fleet(pool(max=1, min=1))
    async with fleet.running():
        for _ in range(40):
            await crash(fleet, exit_code)
            await fleet.pass_time(30)
        assert fleet.machines.calls < 15, "of twenty minutes"
        assert "tried again after" in fleet.source.pools["cpp"].problem


@pytest.mark.parametrize("exit_code", [-signal.SIGKILL, 128 + signal.SIGTERM])
async def test_a_worker_that_somebody_has_killed_is_no_failure(exit_code: int) -> None:
    fleet = Fleet(pool(max=1, min=1))
    async with fleet.running():
        await crash(fleet, exit_code)
        assert fleet.source.pools["cpp"].problem == ""


async def test_a_young_worker_that_was_drained_by_somebody_is_no_failure() -> None:
    fleet = Fleet(pool(max=1, min=1))
    async with fleet.running():
        (name,) = fleet.names
        await fleet.attach(name)
        fleet.workers[name].draining = True
        await fleet.heard()
        fleet.workers.clear()
        fleet.machines.change(name, phase=Phase.ENDED, exit_code=0)
        await fleet.heard()
        assert fleet.source.pools["cpp"].problem == ""


async def test_a_drained_worker_that_does_not_leave_is_removed_once_it_runs_nothing() -> None:
    fleet = Fleet(pool(max=1, min=1))
    async with fleet.running():
        (name,) = fleet.names
        await fleet.attach(name, busy_slots=1)
        fleet.workers[name].draining = True
        await fleet.pass_time(2 * STAYS_SECONDS)
        assert fleet.machines.removed == [], "it runs something"
        fleet.workers[name].leases = fleet.workers[name].busy_slots = 0
        await fleet.pass_time(STAYS_SECONDS - 10)
        assert fleet.machines.removed == []
        await fleet.pass_time(20)
        assert fleet.machines.removed == [(name, STAYS_GRACE_SECONDS)]


async def test_a_clock_that_is_set_forward_gives_up_no_worker_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(pool(max=1, min=1, start_timeout_seconds=100))
    async with fleet.running():
        (name,) = fleet.names
        wall = fleet.clock.wall
        monkeypatch.setattr(fleet.clock, "wall", lambda: wall() + DAY)
        await fleet.pass_time(60)
        assert fleet.names == [name]
        assert fleet.source.pools["cpp"].problem == ""


async def test_a_clock_that_is_set_back_lets_nobody_start_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(pool(max=1, min=1, start_timeout_seconds=100))
    async with fleet.running():
        (name,) = fleet.names
        wall = fleet.clock.wall
        monkeypatch.setattr(fleet.clock, "wall", lambda: wall() - DAY)
        await fleet.pass_time(110)
        assert name not in fleet.names


async def test_a_ledger_that_cannot_be_read_at_first_is_not_written_over() -> None:
    settings = pool(price_per_hour=3600, max_cost_per_day=1000)
    before = Fleet(settings)
    async with before.running():
        await before.waits(1)
        await before.attach(busy_slots=1)
        await before.pass_time(90)
    text = before.ledger.text
    fleet = Fleet(settings, ledger=Ledger(text, broken=True))
    fleet.clock.now = before.clock.now
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach(busy_slots=1)
        await fleet.pass_time(70)
        assert fleet.source.pools["cpp"].cost_today == pytest.approx(70, abs=10)
        fleet.ledger.broken = False
        await fleet.pass_time(60)
        assert fleet.source.pools["cpp"].cost_today == pytest.approx(90 + 130, abs=15)
    assert Spending.from_text(fleet.ledger.text, fleet.clock.wall()).total == pytest.approx(90 + 130, abs=15)


async def test_a_budget_is_no_problem_of_a_pool_that_could_not_do_its_work() -> None:
    pools = [pool("cpp", properties={"Pool": ["cpp"]}, max=9), pool("java", properties={"Pool": ["java"]}, max=9)]
    fleet = Fleet(*pools, tenants={"alice": TenantBudget(max_slots=2)})
    async with fleet.running():
        await fleet.waits(9, properties={"Pool": "cpp"})
        assert "2 slots are the most of tenant 'alice'" in fleet.source.pools["cpp"].problem
        assert fleet.source.pools["java"].problem == ""


async def test_an_image_for_which_there_is_no_room_beside_others_is_told_so() -> None:
    fleet = Fleet(pool("images", container_images=("*",), max=3, target_wait_seconds=1))
    async with fleet.running():
        await fleet.waits(5, properties={"container-image": "a"})
        assert len(fleet.names) == 3
        fleet.work.append(waiting(5, 10, {"container-image": "b"}))
        await fleet.heard()
        assert len(fleet.names) == 3
        problems = {shape.problem for name, shape in fleet.source.pools.items() if name != "images"}
        assert problems == {"3 workers are the most of pool images"}
        fleet.work.clear()
        await fleet.heard()
        assert {shape.problem for shape in fleet.source.pools.values()} == {""}


async def test_a_worker_that_was_to_go_but_got_work_first_is_waited_for_when_the_scheduler_is_started_again() -> None:
    fleet = Fleet(pool(max=1, idle_seconds=10))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach()
        await fleet.waits(0)
        await fleet.pass_time(20)
        assert fleet.source.leaves
        await fleet.attach(busy_slots=1)
        await fleet.pass_time(20)
        running = dict(fleet.workers)
        fleet.workers.clear()
        await fleet.pass_time(15)
        fleet.workers = running
        await fleet.pass_time(5)
        assert fleet.machines.removed == []
