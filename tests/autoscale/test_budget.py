"""What money and agreed numbers let pools grow to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from rexec.autoscale.budget import overall_hold, pool_hold, within_budgets
from rexec.autoscale.hold import FREE
from rexec.autoscale.policy import decide
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings, TenantBudget
from rexec.autoscale.spending import DAY_SECONDS, Spending
from rexec.autoscale.view import Member, Waiting
from tests.autoscale.views import pool, ready, starting, work

MIDNIGHT = 20_000 * DAY_SECONDS
NOON = MIDNIGHT + DAY_SECONDS / 2

DEAR = pool(price_per_hour=3.6)
"""A thousandth a second."""


def used_by(name: str, **slots: int) -> Member:
    return replace(ready(name, busy=sum(slots.values())), age_seconds=DAY_SECONDS, tenants=tuple(sorted(slots.items())))


class TestSpending:
    def test_workers_cost_their_time(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a"), used_by("b")], NOON + 100)
        assert spending.of_pool("small") == pytest.approx(0.2)
        assert spending.total == pytest.approx(0.2)

    def test_tenants_pay_for_the_slots_that_run_their_tasks(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a", red=1, blue=2), used_by("b", red=1)], NOON + 100)
        assert spending.of_tenant("red") == pytest.approx(0.05)
        assert spending.of_tenant("blue") == pytest.approx(0.05)
        assert spending.of_tenant("green") == 0

    def test_pools_of_images_count_for_the_pool_they_come_from(self) -> None:
        spending = Spending(NOON)
        one = pool("images-12345678", family="images", price_per_hour=3.6)
        spending.note([one], [replace(used_by("a"), pool="images-12345678")], NOON + 10)
        assert spending.of_pool("images") == pytest.approx(0.01)

    def test_a_worker_costs_nothing_before_it_was_asked_for(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [starting("a", age=1.0)], NOON + 100)
        assert spending.total == pytest.approx(0.001)

    def test_midnight_starts_a_new_day(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a", red=1)], MIDNIGHT + DAY_SECONDS - 1)
        spending.note([DEAR], [used_by("a", red=1)], MIDNIGHT + DAY_SECONDS + 10)
        assert spending.total == pytest.approx(0.01)
        assert spending.of_tenant("red") == pytest.approx(0.0025)

    def test_a_clock_that_is_set_back_counts_on_from_there(self) -> None:
        spending = Spending(NOON)
        for now in (NOON + 10, NOON - 500, NOON - 495, NOON - 480):
            spending.note([DEAR], [used_by("a")], now)
        assert spending.total == pytest.approx(0.03)

    def test_a_clock_that_is_set_back_by_a_day_makes_no_day_free(self) -> None:
        spending = Spending(NOON)
        for now in (NOON + 10, NOON - DAY_SECONDS, NOON - DAY_SECONDS + 10):
            spending.note([DEAR], [used_by("a")], now)
        assert spending.total == pytest.approx(0.02)
        spending.note([DEAR], [used_by("a")], MIDNIGHT + 1)
        assert spending.total == pytest.approx(0.001), "the next midnight comes all the same"

    def test_a_clock_that_is_set_forward_charges_nobody_for_longer_than_he_is_there(self) -> None:
        spending = Spending(MIDNIGHT)
        spending.note([DEAR], [starting("a", age=5.0)], MIDNIGHT + 40_000)
        assert spending.total == pytest.approx(0.005)

    def test_a_restart_forgets_nothing_and_counts_the_gap(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a", red=4)], NOON + 100)
        again = Spending.from_text(spending.to_text(), NOON + 150)
        assert again.of_tenant("red") == pytest.approx(0.1)
        again.note([DEAR], [used_by("a"), starting("b", age=10.0)], NOON + 200)
        assert again.total == pytest.approx(0.1 + 0.1 + 0.01)

    def test_what_was_stored_yesterday_is_forgotten(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a")], NOON + 100)
        assert Spending.from_text(spending.to_text(), NOON + DAY_SECONDS).total == 0

    def test_what_comes_from_the_future_is_of_now(self) -> None:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a")], NOON + 5000)
        again = Spending.from_text(spending.to_text(), NOON)
        again.note([DEAR], [used_by("a")], NOON + 10)
        assert again.total == pytest.approx(5.01)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            '{"at": 1, "pools": {"a": -1}, "tenants": {}}',
            '{"at": 1e999, "pools": {}, "tenants": {}}',
            "[1]",
            '{"at": 1, "pools": {"a": 1e300}, "tenants": {}}',
            '{"x": ' + "[" * 100_000,
            "\ud800",
        ],
    )
    def test_damaged_text_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="stored spending is"):
            Spending.from_text(text, NOON)

    @given(st.lists(st.floats(0.1, 5000), max_size=10))
    def test_storing_changes_nothing(self, steps: list[float]) -> None:
        kept, stored = Spending(NOON), Spending(NOON)
        now = NOON
        for seconds in steps:
            now += seconds
            members = [used_by("a", red=1, blue=2)]
            kept.note([DEAR], members, now)
            stored.note([DEAR], members, now)
            stored = Spending.from_text(stored.to_text(), now)
        assert stored.to_text() == kept.to_text()


class TestPools:
    settings = PoolSettings(name="small", price_per_hour=3.6, max_cost_per_day=1.0)

    def spent(self, money: float) -> Spending:
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a")], NOON + money * 1000)
        return spending

    def test_a_pool_may_spend_its_money_and_then_starts_nothing(self) -> None:
        assert pool_hold(self.settings, self.spent(0.9)) == FREE
        hold = pool_hold(self.settings, self.spent(1.0))
        assert (hold.startable, hold.why) == (0, "1.00 a day of pool small are spent")

    def test_a_budget_of_less_than_a_cent_is_named_as_it_is(self) -> None:
        hold = pool_hold(replace(self.settings, max_cost_per_day=0.004), self.spent(1.0))
        assert hold.why == "0.004 a day of pool small are spent"

    def test_a_budget_is_stronger_than_min_but_ends_nothing(self) -> None:
        hold = pool_hold(self.settings, self.spent(2.0))
        held = pool(min=3, startable=hold.startable, held_back=hold.why)
        decision = decide([held], [], [ready("a", idle=500.0)])["small"]
        assert (decision.start, decision.leave) == (0, ())
        assert decision.reason.endswith("; 1.00 a day of pool small are spent")

    def test_all_pools_share_a_number_of_workers_and_money(self) -> None:
        settings = AutoscaleSettings(max_workers=5, max_cost_per_day=1.5)
        members = [ready("a"), ready("b"), starting("c")]
        assert overall_hold(settings, members, self.spent(1.0)).startable == 2
        assert overall_hold(settings, members * 2, self.spent(1.0)).startable == 0
        assert overall_hold(settings, members, self.spent(1.6)).why == "1.50 a day of all pools are spent"
        assert overall_hold(AutoscaleSettings(), members, self.spent(1.6)) == FREE


class TestTenants:
    def test_a_tenant_without_a_budget_has_no_limit(self) -> None:
        waiting = [work(9, 9, tenant="red")]
        assert within_budgets(waiting, [], {"blue": TenantBudget(max_slots=1)}, Spending(NOON)) == (waiting, {})

    def test_a_budget_for_all_others_is_of_each_of_them(self) -> None:
        budgets = {"*": TenantBudget(max_slots=2), "red": TenantBudget()}
        waiting = [work(9, 99, tenant=tenant) for tenant in ("red", "blue", "green", "*")]
        kept, reasons = within_budgets(waiting, [used_by("a", blue=1)], budgets, Spending(NOON))
        assert [(one.tenant, one.tasks) for one in kept] == [("red", 9), ("blue", 1), ("green", 2), ("*", 2)]
        assert set(reasons) == {"blue", "green", "*"}

    def test_one_who_asks_for_hundreds_of_images_gets_no_more_workers_than_his_slots(self) -> None:
        waiting = [
            work(1, 99, tenant="mallory", pairs=frozenset({("container-image", str(number))})) for number in range(300)
        ]
        kept, _ = within_budgets(waiting, [], {"*": TenantBudget(max_slots=8)}, Spending(NOON))
        assert sum(one.tasks for one in kept) == 8

    def test_what_a_tenant_runs_counts_against_his_slots(self) -> None:
        budgets = {"red": TenantBudget(max_slots=10)}
        waiting = [work(50, 100, tenant="red"), work(50, 100, tenant="blue")]
        kept, reasons = within_budgets(waiting, [used_by("a", red=3), used_by("b", red=1)], budgets, Spending(NOON))
        assert [one.tasks for one in kept] == [6, 50]
        assert reasons == {"red": "10 slots are the most of tenant 'red'"}
        assert decide([pool(slots=1)], kept[:1], [])["small"].start == 6

    def test_short_work_within_the_slots_is_all_counted(self) -> None:
        kept, _ = within_budgets([work(100, 1, tenant="red")], [], {"red": TenantBudget(max_slots=10)}, Spending(NOON))
        assert decide([pool(slots=1)], kept, [])["small"].start == 5

    def test_one_who_has_all_his_slots_gets_no_more(self) -> None:
        budgets = {"red": TenantBudget(max_slots=4)}
        kept, reasons = within_budgets([work(5, 5, tenant="red")], [used_by("a", red=4)], budgets, Spending(NOON))
        assert (kept, list(reasons)) == ([], ["red"])

    def test_slots_are_shared_by_the_work_of_each_kind(self) -> None:
        budgets = {"red": TenantBudget(max_slots=8)}
        waiting = [work(100, 1, tenant="red"), work(3, 100, tenant="red", slots=2, oldest_seconds=9.0)]
        kept, _ = within_budgets(waiting, [], budgets, Spending(NOON))
        assert [one.tasks for one in kept] == [2, 3]

    def test_one_who_has_spent_his_money_makes_no_pool_grow(self) -> None:
        budgets = {"red": TenantBudget(max_cost_per_day=0.05)}
        spending = Spending(NOON)
        spending.note([DEAR], [used_by("a", red=2)], NOON + 100)
        kept, reasons = within_budgets([work(5, 5, tenant="red"), work(1, 1)], [], budgets, spending)
        assert [one.tenant for one in kept] == [""]
        assert reasons == {"red": "0.05 a day of tenant 'red' are spent"}

    @given(
        st.lists(
            st.builds(
                work,
                tasks=st.integers(1, 50),
                seconds=st.floats(0, 100),
                tenant=st.sampled_from(["red", "blue"]),
                slots=st.integers(1, 5),
                oldest_seconds=st.floats(0, 100),
            ),
            max_size=6,
        ),
        st.integers(1, 40),
        st.integers(0, 4),
    )
    def test_no_more_slots_than_agreed_and_no_more_tasks_than_there_are(
        self, waiting: list[Waiting], most: int, running: int
    ) -> None:
        members = [used_by("a", red=running)] if running else []
        kept, reasons = within_budgets(waiting, members, {"red": TenantBudget(max_slots=most)}, Spending(NOON))
        assert [one for one in kept if one.tenant == "blue"] == [one for one in waiting if one.tenant == "blue"]
        red = [one for one in kept if one.tenant == "red"]
        assert sum(one.tasks * one.slots for one in red) <= max(0, most - running)
        asked = sum(one.tasks for one in waiting if one.tenant == "red")
        assert sum(one.tasks for one in red) <= asked
        assert ("red" in reasons) == (sum(one.tasks for one in red) < asked)
