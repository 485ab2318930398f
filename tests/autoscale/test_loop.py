"""The loop: what it has started, drained and removed, and what it tells, as work and machines come and go."""

from __future__ import annotations

import pytest
import structlog

from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.autoscale.ended import AGAIN_SECONDS
from rexec.autoscale.hands import MAX_STARTS
from rexec.autoscale.life import GONE_SECONDS
from rexec.autoscale.loop import Autoscaler
from rexec.autoscale.provider import Machine, Phase
from rexec.autoscale.settings import PoolKind, TenantBudget
from tests.autoscale.fleet import Fleet, Ledger, offered, pool, refused, settle, waiting


async def test_the_scheduler_is_told_of_the_pools_before_it_has_said_anything() -> None:
    fleet = Fleet(pool(properties={"gcc": ["12"]}, max=7))
    async with fleet.running():
        said = fleet.source.told[0].pools.pools
        assert [(each.name, each.max, each.target) for each in said] == [("cpp", 7, 0)]
        assert {(each.name, each.value) for each in said[0].properties} >= {("gcc", "12"), ("OSFamily", "linux")}


async def test_work_starts_workers_and_idle_ones_are_drained_then_removed() -> None:
    fleet = Fleet(pool(max=3, idle_seconds=60, target_wait_seconds=1))
    async with fleet.running():
        assert fleet.names == []
        await fleet.waits(10)
        assert len(fleet.names) == 3
        assert all(name.startswith("cpp-") and len(name) == len("cpp-xxxxx") for name in fleet.names)
        assert fleet.source.pools["cpp"].starting == 3

        await fleet.attach(busy_slots=1)
        await fleet.waits(0)
        assert fleet.source.pools["cpp"].ready == 3
        await fleet.pass_time(200)
        assert fleet.source.leaves == [], "they are busy"

        await fleet.attach()
        await fleet.pass_time(100)
        assert fleet.source.drained == set(fleet.names)
        assert all(leave.only_idle for leave in fleet.source.leaves)
        assert fleet.machines.removed == []

        # They leave the scheduler and end; what is left of them is removed.
        fleet.workers.clear()
        for name in fleet.names:
            fleet.machines.change(name, phase=Phase.ENDED, exit_code=0)
        await fleet.heard()
        assert fleet.names == []
        assert fleet.source.pools["cpp"].target == 0
        assert fleet.source.pools["cpp"].problem == ""


async def test_a_start_follows_what_the_scheduler_says_without_waiting_for_the_clock() -> None:
    fleet = Fleet(pool())
    async with fleet.running():
        await fleet.clock.advance(0.5)
        fleet.source.say(autoscaling_pb2.ToAutoscaler(waiting=[waiting(1, 10)]))
        await settle()
        assert fleet.machines.calls == 1


async def test_one_decision_follows_another_only_after_a_pause() -> None:
    fleet = Fleet(pool(max=100, target_wait_seconds=1))
    async with fleet.running():
        await fleet.waits(1)
        fleet.source.say(autoscaling_pb2.ToAutoscaler(waiting=[waiting(1, 10)]))
        await settle()
        fleet.source.say(autoscaling_pb2.ToAutoscaler(waiting=[waiting(50, 10)]))
        await settle()
        assert fleet.machines.calls == 1
        await fleet.clock.advance(0.2)
        assert fleet.machines.calls == 50


async def test_workers_that_are_asked_for_are_counted_while_their_start_takes_long() -> None:
    fleet = Fleet(pool(max=100, target_wait_seconds=1))
    fleet.machines.gate.clear()
    async with fleet.running():
        await fleet.waits(50)
        await fleet.pass_time(10)
        assert fleet.machines.most_under_way == MAX_STARTS
        assert fleet.source.pools["cpp"].starting == 50
        fleet.machines.gate.set()
        await fleet.heard()
        assert len(fleet.names) == fleet.machines.calls == 50


async def test_one_start_that_fails_does_not_stop_the_others() -> None:
    fleet = Fleet(pool(max=10, target_wait_seconds=1))
    fleet.machines.refusals = {0: refused("no such node"), 2: RuntimeError("a defect")}
    async with fleet.running():
        await fleet.waits(10)
        assert len(fleet.names) == 8
        await fleet.pass_time(30)
        await fleet.attach()
        await fleet.waits(10)
        assert len(fleet.names) == 10


async def test_a_pool_that_is_refused_is_left_alone_for_a_while_and_says_why() -> None:
    fleet = Fleet(pool(max=10))
    fleet.machines.refuse_all = refused("exceeded quota: pods", lasting=True)
    async with fleet.running():
        await fleet.waits(10)
        tried = fleet.machines.calls
        await fleet.pass_time(5)
        assert fleet.machines.calls == tried
        assert "exceeded quota: pods" in fleet.source.pools["cpp"].problem
        await fleet.pass_time(60)
        assert tried < fleet.machines.calls <= tried + 4, "two at a time"

        fleet.machines.refuse_all = None
        await fleet.pass_time(300)
        await fleet.attach()
        await fleet.waits(10)
        assert len(fleet.names) == 10
        assert fleet.source.pools["cpp"].problem == ""


async def test_when_the_server_says_later_the_rest_of_a_burst_is_not_even_tried() -> None:
    fleet = Fleet(pool(max=200, target_wait_seconds=1))
    fleet.machines.refuse_all = refused("too many requests", retry_after_seconds=10)
    async with fleet.running():
        await fleet.waits(200)
        assert fleet.machines.calls <= MAX_STARTS


async def test_a_machine_that_waits_for_something_says_so_in_its_pool() -> None:
    fleet = Fleet(pool(max=2))
    async with fleet.running():
        await fleet.waits(2)
        fleet.machines.change(fleet.names[0], problem="0/3 nodes are available: insufficient cpu")
        await fleet.heard()
        assert "insufficient cpu" in fleet.source.pools["cpp"].problem
        assert fleet.machines.removed == []


async def test_a_hopeless_machine_is_removed_and_the_next_one_tried_later() -> None:
    fleet = Fleet(pool(max=1))
    async with fleet.running():
        await fleet.waits(1)
        (first,) = fleet.names
        fleet.machines.change(first, problem="image cannot be pulled: not found", hopeless=True)
        await fleet.heard()
        assert [name for name, _grace in fleet.machines.removed] == [first]
        assert "image cannot be pulled" in fleet.source.pools["cpp"].problem
        assert fleet.names == []
        await fleet.pass_time(10)
        assert len(fleet.names) == 1


async def test_a_worker_that_never_comes_is_given_up() -> None:
    fleet = Fleet(pool(max=1, start_timeout_seconds=100))
    async with fleet.running():
        await fleet.waits(1)
        (first,) = fleet.names
        await fleet.pass_time(95)
        assert fleet.names == [first]
        await fleet.pass_time(10)
        assert first not in fleet.names
        assert "has not come within 100s" in fleet.source.pools["cpp"].problem


async def test_a_process_that_ends_at_once_is_a_failed_start() -> None:
    fleet = Fleet(pool(max=1))
    async with fleet.running():
        await fleet.waits(1)
        (first,) = fleet.names
        fleet.machines.change(first, phase=Phase.ENDED, exit_code=1, problem="no isolation here")
        await fleet.heard()
        assert fleet.names == []
        assert "no isolation here" in fleet.source.pools["cpp"].problem


async def test_a_worker_that_was_killed_is_replaced_at_once() -> None:
    fleet = Fleet(pool(max=1))
    async with fleet.running():
        await fleet.waits(1)
        (first,) = fleet.names
        await fleet.attach(busy_slots=1)
        fleet.workers.clear()
        fleet.machines.change(first, phase=Phase.ENDED, exit_code=-9)
        await fleet.heard()
        await fleet.heard()
        assert len(fleet.names) == 1
        assert first not in fleet.names


async def test_machines_that_somebody_deletes_before_they_come_are_not_asked_for_again_and_again() -> None:
    fleet = Fleet(pool(max=2))
    async with fleet.running():
        await fleet.waits(2)
        for _ in range(60):
            for name in fleet.names:
                fleet.machines.drop(name)
            await fleet.clock.advance(1)
            await fleet.heard()
        assert fleet.machines.calls < 20
        assert "deleted before its worker came" in fleet.source.pools["cpp"].problem


async def test_workers_that_are_all_killed_as_soon_as_they_come_are_not_replaced_again_and_again() -> None:
    fleet = Fleet(pool(max=1))
    async with fleet.running():
        await fleet.waits(1)
        for _ in range(60):
            for name in fleet.names:
                await fleet.attach(busy_slots=1)
                fleet.workers.clear()
                fleet.machines.change(name, phase=Phase.ENDED, exit_code=137)
            await fleet.clock.advance(1)
            await fleet.heard()
        assert 5 <= fleet.machines.calls < 20
        assert "in a row were killed" in fleet.source.pools["cpp"].problem


async def test_a_clock_that_is_set_does_not_make_workers_slow() -> None:
    fleet = Fleet(pool(max=1, start_seconds=10))
    async with fleet.running():
        await fleet.waits(1)
        fleet.clock.set_forward(86_400)
        await fleet.attach(busy_slots=1)
        assert fleet.source.pools["cpp"].start_seconds < 60


async def test_the_scheduler_is_told_once_that_the_machine_of_a_worker_that_is_away_has_ended() -> None:
    fleet = Fleet(pool(max=2, target_wait_seconds=1))
    async with fleet.running():
        await fleet.waits(2)
        await fleet.attach(busy_slots=1)
        first, second = fleet.names
        fleet.machines.change(first, phase=Phase.ENDED, exit_code=-9)  # it is listed
        await fleet.machines.remove(second, 0)  # it is not: a pod that was deleted
        await fleet.heard()
        assert fleet.source.ended == [], "the scheduler has not seen their streams break"
        for worker in fleet.workers.values():
            worker.away = True
        await fleet.heard()
        assert sorted(fleet.source.ended) == [first, second]
        await fleet.heard()
        assert len(fleet.source.ended) == 2
        fleet.workers.clear()
        await fleet.pass_time(60)
        assert len(fleet.source.ended) == 2


async def test_a_worker_that_is_away_is_waited_for_while_its_machine_runs() -> None:
    fleet = Fleet(pool(max=2))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach(busy_slots=1, away=True)
        await fleet.pass_time(8)
        assert fleet.source.ended == []


async def test_a_machine_is_not_taken_for_ended_because_its_provider_knows_nothing() -> None:
    fleet = Fleet(pool(max=1))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach(busy_slots=1, away=True)
        fleet.machines.problem = "the API server does not answer"
        await fleet.machines.remove(fleet.names[0], 0)
        await fleet.pass_time(8)
        assert fleet.source.ended == []


async def test_a_scheduler_that_did_not_hear_of_an_end_is_told_again() -> None:
    fleet = Fleet(pool(max=1))
    async with fleet.running():
        await fleet.waits(1)
        (name,) = fleet.names
        await fleet.attach(busy_slots=1, away=True)
        fleet.machines.change(name, phase=Phase.ENDED, exit_code=-9)
        await fleet.heard()
        await fleet.clock.advance(AGAIN_SECONDS)
        await fleet.heard()
        assert fleet.source.ended == [name, name]


async def test_a_machine_that_comes_although_its_start_seemed_to_fail_has_not_ended() -> None:
    fleet = Fleet(pool(max=1))
    fleet.machines.gate.clear()
    async with fleet.running():
        await fleet.waits(1)
        (name,) = fleet.autoscaler._hands.asked
        fleet.machines.refuse_all = refused("the API server did not answer in time")
        fleet.machines.gate.set()
        await fleet.heard()
        fleet.machines.put(Machine(name, "cpp", fleet.clock.wall(), Phase.RUNNING))
        await fleet.heard()
        await fleet.attach(name, busy_slots=1, away=True)
        await fleet.heard()
        assert fleet.source.ended == []


async def test_machines_that_are_there_at_the_start_are_taken_over() -> None:
    fleet = Fleet(pool(max=5, idle_seconds=10), pool("other"))
    for number in range(2):
        fleet.machines.put(Machine(f"cpp-old{number}", "cpp", fleet.clock.wall() - 9000, Phase.RUNNING))
    async with fleet.running():
        assert fleet.source.pools["cpp"].starting == 0, "they may be on their way back"
        await fleet.attach(busy_slots=1)
        assert fleet.source.pools["cpp"].ready == 2
        assert fleet.source.pools["cpp"].start_seconds == 10, "nothing was learned from them"
        await fleet.pass_time(60)
        assert len(fleet.names) == 2
        await fleet.attach()
        await fleet.pass_time(20)
        assert fleet.source.drained == set(fleet.names)


async def test_an_old_machine_whose_worker_is_on_its_way_back_has_time_for_it() -> None:
    fleet = Fleet(pool(max=5, start_timeout_seconds=60))
    fleet.machines.put(Machine("cpp-old", "cpp", fleet.clock.wall() - 9000, Phase.RUNNING))
    async with fleet.running():
        await fleet.pass_time(GONE_SECONDS - 5)
        assert fleet.names == ["cpp-old"]
        await fleet.pass_time(10)
        assert fleet.names == []


async def test_a_scheduler_that_was_started_again_costs_no_worker() -> None:
    fleet = Fleet(pool(max=5))
    async with fleet.running():
        await fleet.waits(2, 30)
        fleet.work = []
        await fleet.attach(busy_slots=1)
        workers = dict(fleet.workers)
        fleet.workers.clear()
        await fleet.waits(0)
        await fleet.pass_time(GONE_SECONDS - 10)
        fleet.workers.update(workers)
        await fleet.pass_time(60)
        assert len(fleet.names) == 2
        assert fleet.machines.removed == []
        assert fleet.source.leaves == []


async def test_a_worker_that_the_scheduler_has_lost_is_removed_in_the_end() -> None:
    fleet = Fleet(pool(max=5))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach()
        fleet.workers.clear()
        await fleet.waits(0)
        await fleet.pass_time(GONE_SECONDS + 10)
        assert fleet.names == []
        assert fleet.machines.removed[0][1] == 3600, "with time to drain, should it still run something"


async def test_while_the_scheduler_is_silent_nothing_is_started_or_removed() -> None:
    fleet = Fleet(pool(max=5, idle_seconds=1, start_timeout_seconds=10))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach(busy_slots=1)
        told = len(fleet.source.told)
        await fleet.clock.advance(20)
        fleet.machines.change(fleet.names[0], phase=Phase.ENDED, exit_code=1)
        fleet.machines.put(Machine("cpp-odd", "cpp", fleet.clock.wall() - 100, Phase.WAITING, hopeless=True))
        await fleet.clock.advance(1000)
        assert fleet.machines.removed == []
        assert fleet.machines.calls == 1
        assert len(fleet.source.told) <= told + 1
        fleet.workers.clear()
        await fleet.waits(3)
        assert len(fleet.machines.removed) == 2
        await fleet.pass_time(300)
        assert fleet.machines.calls > 1


async def test_while_a_provider_is_away_its_pool_says_so_and_keeps_its_workers() -> None:
    fleet = Fleet(pool(max=5, idle_seconds=1))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.attach()
        fleet.machines.problem = "the API server does not answer"
        fleet.machines.changed.set()
        await fleet.waits(4)
        await fleet.pass_time(60)
        assert fleet.machines.calls == 1
        assert fleet.source.pools["cpp"].problem == "the API server does not answer"
        await fleet.waits(0)
        await fleet.pass_time(60)
        assert fleet.source.leaves == [], "there might be no other to be had when work comes"
        fleet.machines.problem = ""
        await fleet.waits(4)
        assert fleet.machines.calls > 1
        assert fleet.source.pools["cpp"].problem == ""


async def test_an_image_that_work_asks_for_gets_a_pool_of_its_own() -> None:
    fleet = Fleet(pool("images", container_images=("registry.example/*",), max=3, target_wait_seconds=1))
    image = "docker://registry.example/gcc:12"
    async with fleet.running():
        assert fleet.source.pools["images"].patterns[0].value == "registry.example/*"
        fleet.work = [
            waiting(2, 10, {"container-image": image}),
            waiting(2, 10, {"container-image": "evil.example/x"}),
        ]
        await fleet.heard()
        assert {machine.image for machine in fleet.machines.machines().values()} == {"registry.example/gcc:12"}
        assert {machine.pool for machine in fleet.machines.machines().values()} == {"images"}
        (name,) = set(fleet.source.pools) - {"images"}
        assert name.startswith("images-")
        assert len(name) == len("images-") + 16
        assert all(machine.startswith(f"{name}-") for machine in fleet.names)
        settings = next(iter(fleet.machines.settings.values()))
        assert settings.name == "images"
        assert settings.properties == {"container-image": ["registry.example/gcc:12", image]}
        assert list(fleet.source.pools) == [name, "images"]
        fleet.work = []
        for machine in fleet.names:
            await fleet.machines.remove(machine, 0)
        await fleet.heard()
        assert list(fleet.source.pools) == ["images"]


async def test_all_images_of_an_entry_share_its_max() -> None:
    fleet = Fleet(pool("images", container_images=("*",), max=3, target_wait_seconds=1))
    async with fleet.running():
        fleet.work = [waiting(5, 10, {"container-image": "a"}), waiting(5, 10, {"container-image": "b"})]
        await fleet.heard()
        assert len(fleet.names) == 3


async def test_a_worker_in_quarantine_is_drained_and_replaced() -> None:
    fleet = Fleet(pool(max=2))
    async with fleet.running():
        await fleet.waits(1)
        (first,) = fleet.names
        await fleet.attach(quarantined=True)
        await fleet.heard()
        assert fleet.source.drained == {first}
        assert not fleet.source.leaves[0].only_idle
        assert len(fleet.names) == 2


async def test_machines_of_a_pool_that_is_configured_no_more_are_drained() -> None:
    fleet = Fleet(pool())
    fleet.machines.put(Machine("gone-1", "gone", fleet.clock.wall(), Phase.RUNNING))
    fleet.machines.put(Machine("gone-2", "gone", fleet.clock.wall(), Phase.RUNNING))
    async with fleet.running():
        assert {name for name, _grace in fleet.machines.removed} == {"gone-1", "gone-2"}
    fleet = Fleet(pool())
    fleet.machines.put(Machine("gone-1", "gone", fleet.clock.wall(), Phase.RUNNING))
    fleet.workers["gone-1"] = autoscaling_pb2.AttachedWorker(name="gone-1", slots=1, busy_slots=1, leases=1)
    async with fleet.running():
        assert fleet.source.drained == {"gone-1"}
        assert fleet.machines.removed == []


async def test_a_removal_that_is_refused_is_tried_again() -> None:
    fleet = Fleet(pool(max=1))
    fleet.machines.refuse_removals = refused("forbidden")
    async with fleet.running():
        await fleet.waits(1)
        fleet.machines.change(fleet.names[0], hopeless=True)
        await fleet.waits(0)
        await fleet.pass_time(10)
        assert len(fleet.names) == 1
        fleet.machines.refuse_removals = None
        await fleet.pass_time(10)
        assert fleet.names == []


async def test_what_workers_offer_is_remembered_when_they_are_gone() -> None:
    fleet = Fleet(pool(max=1))
    fleet.offers = [offered({"OSFamily": "linux", "gcc": "12.2.0"}, cpu_millis=4000)]
    async with fleet.running():
        await fleet.waits(1, properties={"gcc": "12.2.0"})
        assert fleet.names == []
        await fleet.waits(1)
        await fleet.clock.advance(4)
        await fleet.attach()
        assert fleet.source.pools["cpp"].cpu_millis == 4000
        assert fleet.source.pools["cpp"].start_seconds == pytest.approx(4.5, abs=0.5)
        fleet.workers.clear()
        fleet.machines.change(fleet.names[0], phase=Phase.ENDED, exit_code=None)
        await fleet.waits(0)
        assert fleet.names == []
        await fleet.waits(1, properties={"gcc": "12.2.0"})
        assert len(fleet.names) == 1


async def test_money_is_remembered_over_a_restart() -> None:
    settings = pool(max=1, price_per_hour=3600, max_cost_per_day=100)
    fleet = Fleet(settings)
    async with fleet.running():
        await fleet.waits(5)
        await fleet.attach(busy_slots=1)
        await fleet.pass_time(90)
        assert fleet.source.pools["cpp"].cost_today == pytest.approx(90, abs=10)
        assert '"cpp"' in fleet.ledger.text
    again = Fleet(settings, ledger=Ledger(fleet.ledger.text))
    again.clock.now = fleet.clock.now
    async with again.running():
        assert again.source.pools["cpp"].cost_today == pytest.approx(90, abs=10)
        await again.waits(5)
        await again.pass_time(30)
        again.machines.refuse_removals = None
        for name in again.names:
            await again.machines.remove(name, 0)
        calls = again.machines.calls
        await again.pass_time(30)
        assert again.machines.calls == calls
        assert "100.00 a day" in again.source.pools["cpp"].problem


async def test_a_ledger_that_cannot_be_read_stops_nothing() -> None:
    fleet = Fleet(pool(price_per_hour=1), ledger=Ledger(broken=True))
    async with fleet.running():
        await fleet.waits(1)
        await fleet.pass_time(70)
        assert len(fleet.names) == 1


async def test_a_tenant_over_his_budget_makes_nothing_grow_and_is_told() -> None:
    fleet = Fleet(pool(max=9, target_wait_seconds=1), tenants={"alice": TenantBudget(max_slots=2)})
    async with fleet.running():
        await fleet.waits(9)
        assert len(fleet.names) == 2
        assert "2 slots are the most of tenant 'alice'" in fleet.source.pools["cpp"].problem


async def test_a_dry_run_says_what_it_would_do_and_does_nothing() -> None:
    fleet = Fleet(pool(max=3))
    fleet.machines.put(Machine("cpp-odd", "cpp", 0.0, Phase.ENDED))
    fleet.autoscaler = Autoscaler(
        fleet.autoscaler._settings,
        fleet.source,
        {PoolKind.KUBERNETES: fleet.machines},
        clock=fleet.clock,
        dry_run=True,
    )
    with structlog.testing.capture_logs() as logs:
        async with fleet.running():
            await fleet.waits(5)
            await fleet.pass_time(30)
    assert fleet.machines.calls == 0
    assert fleet.machines.removed == []
    assert not fleet.source.leaves
    said = [entry for entry in logs if entry["event"] == "pool would change"]
    assert [(entry["pool"], entry["starts"]) for entry in said] == [("cpp", 3)]


async def test_each_change_is_logged_with_its_reason() -> None:
    fleet = Fleet(pool(max=3, target_wait_seconds=1))
    with structlog.testing.capture_logs() as logs:
        async with fleet.running():
            await fleet.waits(5)
            await fleet.pass_time(30)
    (entry,) = [entry for entry in logs if entry["event"] == "pool changes"]
    assert (entry["pool"], entry["workers"], entry["target"], entry["starts"]) == ("cpp", 0, 3, 3)
    assert "slot-seconds wait" in entry["why"]
