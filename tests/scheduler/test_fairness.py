"""Who gets the next slot: shares of tenants, users and invocations, their weights and limits, and the order within a build."""

from __future__ import annotations

from collections import Counter

import pytest

from cas.digest import Digest
from cas.errors import Code, QueueFull
from rexec.scheduler import events as e
from rexec.scheduler.fairness_settings import FairnessSettings, OwnShareSettings, ShareSettings
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Owner, Usage
from tests.scheduler.rules import Driver
from tests.scheduler.simulation import Simulation

LARGE = Owner("red", "alice", "large")


def settings(**fairness: object) -> SchedulerSettings:
    return SchedulerSettings(fairness=FairnessSettings(**fairness), max_queued_operations=1_000_000)  # type: ignore[arg-type]


class TestShares:
    @pytest.mark.parametrize(
        "small",
        [Owner("red", "alice", "small"), Owner("red", "bob", "large"), Owner("blue", "alice", "large")],
        ids=["another invocation", "another user", "another tenant"],
    )
    def test_a_small_build_gets_the_next_free_slots_whatever_waits(self, small: Owner) -> None:
        world = Simulation(settings(), checks=False)
        world.attach("w", 10)
        for number in range(5_000):
            world.submit(f"large-{number}", LARGE)
        world.run(3.5)
        for number in range(10):
            world.submit(f"small-{number}", small)
        world.run(5.5)
        # Ten slots get free at second 4 and ten more at second 5: a half of each is the share of the small one.
        assert Counter(run.at for run in world.served(small)) == {4.0: 5, 5.0: 5}
        assert sum(run.at in (4.0, 5.0) for run in world.served(LARGE)) == 10

    def test_whoever_is_alone_gets_every_slot(self) -> None:
        world = Simulation()
        world.attach("w", 8)
        for number in range(16):
            world.submit(f"a-{number}", LARGE)
        world.run(1.5)
        assert len(world.served(LARGE)) == 16

    def test_slots_are_divided_by_the_weights(self) -> None:
        world = Simulation(settings(tenants={"red": OwnShareSettings(weight=3.0)}), checks=False)
        owners = [Owner("red", "alice", "1"), Owner("blue", "bob", "2")]
        for number in range(200):
            for owner in owners:
                world.submit(f"{owner.tenant}-{number}", owner)
        world.attach("w", 8)
        world.run(19.5)
        assert [len(world.served(owner)) for owner in owners] == [6 * 20, 2 * 20]

    def test_shares_that_are_not_those_of_the_weights_become_so(self) -> None:
        world = Simulation(settings(users={"alice": OwnShareSettings(weight=0.5)}), checks=False)
        world.attach("w", 9)
        alice, bob = Owner("", "alice", ""), Owner("", "bob", "")
        for number in range(400):
            world.submit(f"alice-{number}", alice)
        world.run(5.5)
        for number in range(400):
            world.submit(f"bob-{number}", bob)
        world.run(20.5)
        assert Counter(run.owner.user for run in world.runs if run.at > 6.5) == {"alice": 3 * 14, "bob": 6 * 14}

    def test_a_user_with_many_invocations_gets_no_more_than_one_with_a_single_one(self) -> None:
        """recc makes an invocation of each action."""
        world = Simulation(checks=False)
        world.attach("w", 4)
        for number in range(100):
            world.submit(f"recc-{number}", Owner("", "alice", str(number)))
            world.submit(f"bazel-{number}", Owner("", "bob", "build"))
        world.run(10.5)
        assert Counter(run.owner.user for run in world.runs) == {"alice": 22, "bob": 22}

    def test_of_equal_shares_the_one_served_longest_ago_is_next(self) -> None:
        world = Simulation()
        for number in range(4):
            for user in "abc":
                world.submit(f"{user}-{number}", Owner("", user, ""))
        world.attach("w", 1)
        world.run(8.5)
        assert "".join(run.owner.user for run in world.runs) == "abcabcabc"

    def test_the_share_of_a_large_action_is_what_it_takes_up(self) -> None:
        world = Simulation(checks=False)
        world.attach("w", 8)
        for number in range(200):
            world.submit(f"fat-{number}", Owner("", "alice", ""), demand=Demand(slots=2))
            world.submit(f"thin-{number}", Owner("", "bob", ""))
        world.run(20.5)
        counts = Counter(run.owner.user for run in world.runs)
        assert abs(counts["bob"] / counts["alice"] - 2.0) < 0.2

    def test_no_owner_is_remembered_once_all_has_ended(self) -> None:
        world = Simulation()
        world.attach("w", 2)
        for number in range(20):
            world.submit(f"a-{number}", Owner(f"tenant-{number % 2}", f"user-{number % 3}", str(number)))
        world.run(30.0)
        shares = world.queue.fleet.shares
        assert (len(shares), shares.root.children) == (0, {})
        assert (shares.root.running, shares.root.used_millis, shares.root.queued) == (0, 0, 0)


class TestJoining:
    ALICE, BOB = Owner("", "alice", "1"), Owner("", "bob", "2")

    def test_a_task_that_two_wait_for_runs_at_the_turn_of_the_first_of_them_and_is_charged_to_him(self) -> None:
        world = Simulation()
        world.submit("busy", self.ALICE)
        world.attach("w", 1)
        for number in range(5):
            world.submit(f"a-{number}", self.ALICE)
        world.submit("shared", self.ALICE, action="same")
        world.submit("shared too", self.BOB, action="same")
        world.run(2.5)
        assert [(run.name, run.owner) for run in world.runs] == [
            ("busy", self.ALICE), ("a-0", self.ALICE), ("shared", self.BOB)
        ]  # fmt: skip
        world.run(10.0)
        assert len(world.runs) == 7

    def test_one_who_leaves_takes_his_turn_with_him(self) -> None:
        world = Simulation()
        world.submit("busy", self.ALICE)
        world.attach("w", 1)
        world.submit("first", self.ALICE)
        world.submit("shared", self.ALICE, action="same")
        world.submit("shared too", self.BOB, action="same")
        world.submit("second", self.ALICE)
        world.do(e.Cancel("shared too"))
        world.run(3.5)
        assert [run.name for run in world.runs] == ["busy", "first", "shared", "second"]

    def test_a_joiner_who_is_more_urgent_makes_it_urgent_for_all(self) -> None:
        world = Simulation()
        for number in range(3):
            world.submit(f"a-{number}", self.ALICE)
        world.submit("shared", self.ALICE, action="same")
        world.submit("shared too", self.ALICE, action="same", priority=-1)
        world.attach("w", 1)
        assert [run.name for run in world.runs] == ["shared"]


class TestOrder:
    def test_priority_then_the_longest_then_arrival(self) -> None:
        world = Simulation()
        for kind, seconds in (("long", 60.0), ("short", 1.0)):
            world.queue.state.statistics.learn(Candidate("", Digest.of(b""), action_class=kind), Usage(seconds))
        for name, kind, priority in (
            ("short-1", "short", 0), ("long-1", "long", 0), ("late", "long", 5), ("urgent", "short", -5),
            ("short-2", "short", 0), ("long-2", "long", 0),
        ):  # fmt: skip
            world.submit(name, LARGE, action_class=kind, priority=priority)
        world.attach("w", 1)
        world.run(5.5)
        assert [run.name for run in world.runs] == ["urgent", "long-1", "long-2", "short-1", "short-2", "late"]

    def test_priority_says_nothing_between_owners(self) -> None:
        world = Simulation()
        world.submit("busy", Owner("", "alice", ""))
        world.attach("w", 1)
        world.submit("alice", Owner("", "alice", ""), priority=-1000)
        world.submit("alice too", Owner("", "alice", ""), priority=-1000)
        world.submit("bob", Owner("", "bob", ""), priority=1000)
        world.run(3.5)
        assert [run.name for run in world.runs] == ["busy", "alice", "bob", "alice too"]


class TestLimits:
    def test_past_its_running_limit_a_user_waits_while_others_go_on(self) -> None:
        rules = Driver(settings(users={"alice": OwnShareSettings(max_running=2)}))
        rules.attach(slots=4)
        alice = [rules.submit(owner=Owner("", "alice", str(number))) for number in range(4)]
        assert [bool(rules.running_on(name)) for name in alice] == [True, True, False, False]
        assert rules.reason(alice[2]) == "the limit of user 'alice', 2 running, is reached"
        assert rules.running_on(rules.submit(owner=Owner("", "bob", "")))
        rules.finish("w1-session")
        assert rules.running_on(alice[2])
        assert not rules.running_on(alice[3])

    def test_who_falls_below_his_limit_gets_a_slot_of_any_worker(self) -> None:
        """The one that ended ran on a worker that the next one does not fit."""
        rules = Driver(settings(user=ShareSettings(max_running=1)))
        rules.attach("plain")
        rules.attach("gpu", pairs=frozenset({("gpu", "a100")}))
        owner = Owner("", "alice", "")
        rules.submit(owner=owner, pairs=frozenset({("OSFamily", "linux")}))
        waiting = rules.submit(owner=owner, pairs=frozenset({("gpu", "a100")}))
        assert rules.reason(waiting) == "the limit of user 'alice', 1 running, is reached"
        rules.finish("plain-session")
        assert rules.running_on(waiting) == "gpu"

    def test_limits_hold_at_every_level(self) -> None:
        rules = Driver(
            settings(tenant=ShareSettings(max_running=3), user=ShareSettings(max_running=2),
                     invocation=ShareSettings(max_running=1))
        )  # fmt: skip
        rules.attach(slots=9)
        reasons = {}
        for user in "abc":
            for invocation in "123":
                name = rules.submit(owner=Owner("red", user, invocation))
                rules.submit(owner=Owner("red", user, invocation))
                reasons[user + invocation] = rules.reason(name)
        running = [user for user, reason in reasons.items() if not reason]
        assert running == ["a1", "a2", "b1"]
        assert reasons["a3"] == "the limit of user 'a', 2 running, is reached"
        assert reasons["c3"] == "the limit of tenant 'red', 3 running, is reached"
        assert rules.running_on(rules.submit(owner=Owner("blue", "a", "1")))

    def test_a_task_waits_only_as_long_as_all_its_owners_are_at_their_limits(self) -> None:
        rules = Driver(settings(user=ShareSettings(max_running=1)))
        rules.attach(slots=4)
        rules.submit(owner=Owner("", "alice", ""))
        shared = rules.submit("same", owner=Owner("", "alice", ""))
        assert not rules.running_on(shared)
        rules.submit("same", owner=Owner("", "bob", ""))
        assert rules.running_on(shared)

    def test_past_its_queue_limit_a_submission_is_refused_with_a_time_to_come_back(self) -> None:
        rules = Driver(settings(users={"alice": OwnShareSettings(max_queued=2)}))
        alice = Owner("", "alice", "")
        for _ in range(2):
            rules.submit(owner=alice)
        with pytest.raises(QueueFull, match=r"user 'alice' has 2 operations queued, and the limit is 2") as refused:
            rules.submit(owner=alice)
        status = refused.value.to_proto()
        assert status.code == Code.RESOURCE_EXHAUSTED
        assert [detail.TypeName() for detail in status.details] == ["google.rpc.RetryInfo"]
        rules.submit(owner=Owner("", "bob", ""))
        rules.attach(slots=1)
        rules.submit(owner=alice)

    def test_whoever_is_refused_leaves_no_trace(self) -> None:
        rules = Driver(settings(tenant=ShareSettings(max_queued=1)))
        rules.submit(owner=Owner("red", "alice", "1"))
        with pytest.raises(QueueFull, match="tenant 'red'"):
            rules.submit(owner=Owner("red", "bob", "2"))
        assert len(rules.queue.fleet.shares) == 1

    def test_an_own_limit_is_over_the_one_for_all(self) -> None:
        own = OwnShareSettings(max_running=0, weight=2.0)
        assert own.over(ShareSettings(max_running=5, max_queued=7)) == ShareSettings(
            max_running=0, max_queued=7, weight=2.0
        )
