"""Workers that fail everything, and those that only look like it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cas.errors import WorkerLost
from rexec.scheduler import events as e
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Demand, Failure, Stage, Standing
from tests.scheduler.rules import Driver, of_kind


@pytest.fixture
def rules() -> Driver:
    return Driver(SchedulerSettings(exclusion_seconds=0.5))


def fail(rules: Driver, worker: str, times: int = 1, evidence: str = "no space left") -> Sequence[e.Effect]:
    """So many actions of their own fail on the worker, and are then cancelled."""
    effects: list[e.Effect] = []
    for _ in range(times):
        name = rules.submit()
        assert rules.running_on(name)
        effects += rules.finish(worker, failure=Failure.INFRASTRUCTURE, evidence=evidence)
        effects += rules.do(e.Cancel(name))
        rules.credit(worker, 1)
    return effects


def standing(rules: Driver, name: str) -> Standing:
    return rules.queue.fleet.by_name[name].standing


class TestBecoming:
    def test_three_different_actions_in_a_row_are_too_many(self, rules: Driver) -> None:
        bad = rules.attach("bad")
        assert not of_kind(fail(rules, bad, 2), e.WorkerQuarantined)
        (told,) = of_kind(fail(rules, bad), e.WorkerQuarantined)
        assert (told.worker_name, told.seconds) == ("bad", 5.0)
        assert len(told.evidence) == 3
        assert all("no space left" in line for line in told.evidence)
        name = rules.submit()
        assert rules.running_on(name) == ""
        assert rules.reason(name) == (
            "worker bad is quarantined until its next trial: 3 different actions in a row failed there, the last one because:"
            " no space left"
        )

    def test_others_get_what_it_does_not(self, rules: Driver) -> None:
        bad = rules.attach("bad", slots=4)
        fail(rules, bad, 3)
        rules.attach("good", slots=2)
        names = [rules.submit() for _ in range(3)]
        assert [rules.running_on(name) for name in names] == ["good", "good", ""]

    def test_one_success_in_between_clears_the_count(self, rules: Driver) -> None:
        bad = rules.attach("bad")
        for _ in range(5):
            fail(rules, bad, 2)
            rules.submit()
            rules.finish(bad)
            rules.credit(bad, 1)
        assert standing(rules, "bad") is Standing.TRUSTED

    @pytest.mark.parametrize("failure", [Failure.BACK_PRESSURE, Failure.REVOKED])
    def test_want_of_room_does_not_count(self, rules: Driver, failure: Failure) -> None:
        full = rules.attach("full")
        for _ in range(10):
            name = rules.submit()
            rules.finish(full, failure=failure)
            rules.do(e.Cancel(name))
            rules.credit(full, 1)
        assert standing(rules, "full") is Standing.TRUSTED

    def test_what_is_certainly_not_its_fault_does_not_count(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        for _ in range(10):
            name = rules.submit()
            (lease,) = rules.leases(worker)
            rules.do(
                e.Finished(
                    worker, lease.lease_id, lease.epoch, Failure.INFRASTRUCTURE, evidence="store", blames_worker=False
                )
            )
            rules.do(e.Cancel(name))
            rules.credit(worker, 1)
        assert standing(rules, "w1") is Standing.TRUSTED

    def test_an_action_that_fails_everywhere_is_held_against_nobody(self, rules: Driver) -> None:
        worker = rules.attach("w1")
        for _ in range(5):
            name = rules.submit("killer")
            while rules.operation(name).outcome is None:
                if rules.leases(worker):
                    rules.finish(worker, failure=Failure.INFRASTRUCTURE)
                    rules.credit(worker, 1)
                rules.pass_time(1)
            assert standing(rules, "w1") is Standing.TRUSTED

    def test_silence_counts(self, rules: Driver) -> None:
        rules.workers_answer = False
        rules.attach("deaf", slots=3)
        for _ in range(3):
            rules.submit()
        effects = rules.pass_time(rules.settings.answer_seconds)
        assert [told.worker_name for told in of_kind(effects, e.WorkerQuarantined)] == ["deaf"]

    def test_names_of_workers_do_not_fill_the_memory(self, rules: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rexec.scheduler.quarantine.MAX_RECORDS", 5)
        for number in range(20):
            worker = rules.attach(f"w{number}")
            fail(rules, worker)
            rules.do(e.Draining(worker))
            rules.do(e.WorkerDetached(worker))
        assert len(rules.queue.state.records) == 5

    def test_one_whose_failures_are_forgotten_gets_actions_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rexec.scheduler.quarantine.MAX_RECORDS", 1)
        rules = Driver(SchedulerSettings(quarantine_failures=1))
        for name in ("forgotten", "remembered"):
            fail(rules, rules.attach(name))
        assert (standing(rules, "forgotten"), standing(rules, "remembered")) == (
            Standing.TRUSTED,
            Standing.QUARANTINED,
        )
        assert rules.leases("forgotten-session")  # what failed on the other one went there


class TestTrial:
    def test_after_a_while_it_gets_one_action_and_no_more(self, rules: Driver) -> None:
        bad = rules.attach("bad", slots=3)
        fail(rules, bad, 3)
        rules.credit(bad, 3)
        names = [rules.submit() for _ in range(3)]
        rules.pass_time(rules.settings.quarantine_seconds)
        assert [rules.running_on(name) for name in names] == ["bad", "", ""]

    def test_success_makes_it_trusted_again(self, rules: Driver) -> None:
        bad = rules.attach("bad", slots=3)
        fail(rules, bad, 3)
        rules.credit(bad, 3)
        names = [rules.submit() for _ in range(4)]
        rules.pass_time(rules.settings.quarantine_seconds)
        effects = rules.finish(bad)
        assert of_kind(effects, e.WorkerTrusted) == [e.WorkerTrusted("bad")]
        assert [rules.running_on(name) for name in names[1:3]] == ["bad", "bad"]

    def test_each_failed_trial_doubles_the_time_up_to_the_longest(self) -> None:
        rules = Driver(SchedulerSettings(quarantine_seconds=5, quarantine_max_seconds=30))
        bad = rules.attach("bad")
        fail(rules, bad, 3)
        rules.attach("good", credit=0)  # stands in for it, and is busy
        waited = []
        for _ in range(5):
            name = rules.submit()
            began = rules.now
            while not rules.running_on(name):
                rules.pass_time(0.5)
            waited.append(rules.now - began)
            effects = rules.finish(bad, failure=Failure.INFRASTRUCTURE)
            assert not of_kind(effects, e.WorkerQuarantined)  # said once
            rules.do(e.Cancel(name))
            rules.credit(bad, 1)
        assert waited == [5, 10, 20, 30, 30]

    def test_a_trial_that_says_nothing_is_followed_by_another(self, rules: Driver) -> None:
        bad = rules.attach("bad")
        fail(rules, bad, 3)
        name = rules.submit()
        rules.pass_time(rules.settings.quarantine_seconds)
        assert rules.running_on(name) == "bad"
        rules.do(e.Cancel(name))
        rules.finish(bad, failure=Failure.REVOKED)
        rules.credit(bad, 1)
        assert standing(rules, "bad") is Standing.ON_TRIAL
        assert rules.running_on(rules.submit()) == "bad"

    def test_leases_of_before_can_clear_it_but_not_make_it_worse(self, rules: Driver) -> None:
        bad = rules.attach("bad", slots=5)
        before = [rules.submit() for _ in range(5)]
        for _ in range(3):
            rules.finish(bad, failure=Failure.INFRASTRUCTURE)
        assert standing(rules, "bad") is Standing.QUARANTINED
        rules.finish(bad, failure=Failure.INFRASTRUCTURE)
        assert rules.queue.state.records["bad"].seconds == rules.settings.quarantine_seconds
        rules.finish(bad)
        assert standing(rules, "bad") is Standing.TRUSTED
        assert rules.operation(before[4]).outcome is not None

    def test_a_new_session_of_the_name_is_no_clean_slate(self, rules: Driver) -> None:
        fail(rules, rules.attach("bad"), 3)
        rules.do(e.WorkerDetached("bad-session"))
        rules.attach("bad", session="again")
        name = rules.submit()
        assert rules.running_on(name) == ""
        rules.pass_time(rules.settings.quarantine_seconds)
        assert rules.running_on(name) == "bad"


class TestAlone:
    def test_a_worker_that_no_other_can_stand_in_for_is_tried_again_and_again(self, rules: Driver) -> None:
        gpu = frozenset({("gpu", "a100")})
        rules.attach("cpu", credit=5)
        only = rules.attach("only", pairs=gpu)
        for _ in range(3):
            name = rules.submit(pairs=gpu)
            rules.finish(only, failure=Failure.INFRASTRUCTURE)
            rules.do(e.Cancel(name))
            rules.credit(only, 1)
        for _ in range(6):
            name = rules.submit(pairs=gpu)
            rules.pass_time(rules.settings.quarantine_seconds)
            assert rules.running_on(name) == "only"
            rules.finish(only, failure=Failure.INFRASTRUCTURE)
            rules.do(e.Cancel(name))
            rules.credit(only, 1)

    @pytest.mark.parametrize(
        ("large", "demand"),
        [
            ({"slots": 4}, Demand(slots=4)),
            ({"cpu_millis": 8000}, Demand(cpu_millis=8000)),
            ({"memory_bytes": 8 << 30}, Demand(memory_bytes=8 << 30)),
        ],
    )
    def test_nor_can_a_smaller_one_stand_in_for_it(self, rules: Driver, large: dict[str, int], demand: Demand) -> None:
        rules.attach("small", cpu_millis=1000, memory_bytes=1 << 30)
        only = rules.attach("only", **{"cpu_millis": 1000, "memory_bytes": 1 << 30, **large})  # type: ignore[arg-type]
        for _ in range(5):
            name = rules.submit(demand=demand)
            rules.pass_time(rules.settings.quarantine_seconds)
            assert rules.running_on(name) == "only"
            rules.finish(only, failure=Failure.INFRASTRUCTURE)
            rules.do(e.Cancel(name))
            rules.credit(only, 1)

    def test_when_the_one_that_stood_in_leaves_it_is_tried_soon(self, rules: Driver) -> None:
        bad = rules.attach("bad")
        fail(rules, bad, 3)
        good = rules.attach("good", credit=0)
        for _ in range(4):  # the next trial is a minute away
            name = rules.submit()
            while not rules.running_on(name):
                rules.pass_time(1)
            rules.finish(bad, failure=Failure.INFRASTRUCTURE)
            rules.do(e.Cancel(name))
            rules.credit(bad, 1)
        rules.do(e.Draining(good))
        rules.do(e.WorkerDetached(good))
        name = rules.submit()
        rules.pass_time(rules.settings.quarantine_seconds)
        assert rules.running_on(name) == "bad"

    def test_all_waiting_actions_end_although_the_only_worker_fails_everything(self, rules: Driver) -> None:
        bad = rules.attach("bad", slots=2)
        names = [rules.submit() for _ in range(4)]
        for _ in range(60):
            for lease in rules.leases(bad):
                rules.finish(bad, lease, failure=Failure.INFRASTRUCTURE)
            rules.credit(bad, 2)
            rules.pass_time(1)
        assert all(rules.operation(name).stage is Stage.COMPLETED for name in names)

    def test_a_task_does_not_insist_on_a_worker_that_is_quarantined(self, rules: Driver) -> None:
        bad = rules.attach("bad")
        fail(rules, bad, 3)
        other = rules.attach("other")
        name = rules.submit()
        rules.finish(other, failure=Failure.INFRASTRUCTURE)
        rules.credit(other, 1)
        rules.pass_time(rules.settings.exclusion_seconds)
        assert rules.running_on(name) == "other"


class TestKillers:
    def lose(self, rules: Driver, worker: str) -> None:
        rules.do(e.WorkerDetached(f"{worker}-session"))
        rules.pass_time(rules.settings.grace_seconds)

    def test_the_loss_of_a_worker_is_one_incident_whatever_ran_there(self, rules: Driver) -> None:
        rules.attach("w1", slots=8)
        for _ in range(8):
            rules.submit()
        self.lose(rules, "w1")
        rules.attach("w1", slots=8)
        assert standing(rules, "w1") is Standing.TRUSTED

    def test_an_action_that_kills_the_only_worker_three_times_fails_and_quarantines_nobody(self, rules: Driver) -> None:
        killer = rules.submit("killer")
        innocent = []
        for round_ in range(3):
            rules.attach("w1", slots=2)
            rules.pass_time(rules.settings.exclusion_seconds)
            assert rules.running_on(killer) == "w1"
            innocent.append(rules.submit(f"innocent {round_}"))
            self.lose(rules, "w1")
            rules.do(e.Cancel(innocent[-1]))
        outcome = rules.operation(killer).outcome
        assert outcome is not None
        assert isinstance(outcome.error, WorkerLost)
        assert str(outcome.error).count("w1 (worker lost") == 3
        rules.attach("w1")
        assert standing(rules, "w1") is Standing.TRUSTED

    def test_an_action_that_kills_every_worker_quarantines_none_of_them(self, rules: Driver) -> None:
        for round_ in range(4):
            for worker in ("w1", "w2", "w3"):
                rules.attach(worker, slots=1)
            killer = rules.submit(f"killer {round_}")
            for _ in range(3):
                worker = rules.running_on(killer)
                self.lose(rules, worker)
                rules.attach(worker)
            assert rules.operation(killer).outcome is not None
            for worker in ("w1", "w2", "w3"):
                assert standing(rules, worker) is Standing.TRUSTED
                rules.submit()
            for worker in ("w1", "w2", "w3"):
                rules.finish(f"{worker}-session")

    def test_a_worker_that_is_lost_with_three_different_actions_in_a_row_is_quarantined(self, rules: Driver) -> None:
        for round_ in range(3):
            rules.attach("flapping")
            name = rules.submit(f"{round_}")
            assert rules.running_on(name) == "flapping"
            self.lose(rules, "flapping")
            rules.do(e.Cancel(name))
        rules.attach("flapping")
        assert standing(rules, "flapping") is Standing.QUARANTINED

    def test_one_that_leaves_of_its_own_accord_is_not_blamed(self, rules: Driver) -> None:
        for round_ in range(5):
            worker = rules.attach("spot")
            name = rules.submit(f"{round_}")
            assert rules.running_on(name) == "spot"
            rules.do(e.Draining(worker))
            self.lose(rules, "spot")
            rules.do(e.Cancel(name))
        rules.attach("spot")
        assert standing(rules, "spot") is Standing.TRUSTED
