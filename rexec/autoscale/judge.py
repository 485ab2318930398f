"""What the policy (rexec/autoscale/policy.py) says of the pools as they are, once money, failures and providers have been asked;
and what is wrong with each pool, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from msgspec.structs import replace

from rexec.autoscale.budget import overall_hold, pool_hold, within_budgets
from rexec.autoscale.decision import PoolDecision
from rexec.autoscale.failures import Failures
from rexec.autoscale.fleet_view import FleetView
from rexec.autoscale.hands import Hands
from rexec.autoscale.hold import FREE, Hold, tightest
from rexec.autoscale.kept_spending import KeptSpending
from rexec.autoscale.lately import WINDOW_SECONDS, Lately
from rexec.autoscale.matching import Offers, fits
from rexec.autoscale.policy import decide
from rexec.autoscale.provider import Machine
from rexec.autoscale.settings import AutoscaleSettings
from rexec.autoscale.view import MemberState, PoolView, Waiting


class Judge:
    """Of one autoscaler's pools."""

    def __init__(self, settings: AutoscaleSettings, hands: Hands, failures: Failures, kept: KeptSpending) -> None:
        self._settings = settings
        self._families = {pool.name: pool for pool in settings.pools}
        self._hands = hands
        self._failures = failures
        self._kept = kept
        self._lately = Lately()

    def decisions(
        self, view: FleetView, machines: Mapping[str, Machine], *, now: float, wall: float, heard_since: float
    ) -> tuple[dict[str, PoolDecision], dict[str, str]]:
        """What the policy says, and what is wrong with each pool. `heard_since`: since when the scheduler has been heard without
        a gap."""
        self._kept.now.note(view.pools, view.members, wall)
        waiting, over_budget = within_budgets(view.waiting, view.members, self._settings.tenants, self._kept.now)
        starting: dict[str, int] = {}
        for member in view.members:
            if member.state is MemberState.STARTING:
                starting[member.pool] = starting.get(member.pool, 0) + 1
        overall = overall_hold(self._settings, view.members, self._kept.now)
        pools: list[PoolView] = []
        holds: dict[str, Hold] = {}
        for pool in view.pools:
            settings = view.shapes[pool.name].settings
            problem = self._hands.problem_of(settings)
            holds[pool.name] = hold = tightest(
                Hold(0, problem) if problem else FREE,
                self._failures.hold(pool.name, starting.get(pool.name, 0)),
                pool_hold(self._families[pool.family], self._kept.now),
            )
            if now - heard_since > WINDOW_SECONDS:
                # Before that it is not known what was wanted lately, nor are all clients back.
                pool = replace(pool, lately_wanted=self._lately.wanted(pool.name, now))
            pools.append(replace(pool, startable=hold.startable, held_back=hold.why))
        decisions = decide(pools, waiting, view.members, startable=overall.startable, held_back=overall.why)
        for name, decision in decisions.items():
            self._lately.note(name, decision.wanted, now)
        self._lately.keep(decisions)
        self._failures.keep(decisions)
        held_up = _held_up(pools, view.waiting, over_budget)
        number = Counter(view.shapes[member.pool].family for member in view.members)
        for pool in pools:
            number[pool.family] += decisions[pool.name].start
        problems: dict[str, str] = {}
        for pool in pools:
            limit = overall
            if pool.name != pool.family and number[pool.family] >= pool.family_max:
                # Its own workers do not show that, as those of other pools do.
                limit = Hold(0, f"{pool.family_max} workers are the most of pool {pool.family}")
            problems[pool.name] = _problem(
                pool, decisions[pool.name], holds[pool.name], limit, view, machines, held_up.get(pool.name, ())
            )
        for family in self._settings.pools:
            if family.container_images and (problem := self._hands.problem_of(family)):
                problems[family.name] = problem
        return decisions, problems


def _held_up(
    pools: Sequence[PoolView], waiting: Sequence[Waiting], over_budget: Mapping[str, str]
) -> dict[str, dict[str, None]]:
    """By pool, the budgets that leave out some of the work it could do: of other pools they say nothing."""
    found: dict[str, dict[str, None]] = {}
    if over_budget:
        offers = Offers(pools)
        for work in waiting:
            if why := over_budget.get(work.tenant):
                for pool in offers.possible(work):
                    if fits(work, pool.offer):
                        found.setdefault(pool.name, {})[why] = None
    return found


def _problem(
    pool: PoolView,
    decision: PoolDecision,
    hold: Hold,
    limit: Hold,
    view: FleetView,
    machines: Mapping[str, Machine],
    over_budget: Iterable[str],
) -> str:
    """Why a pool does not grow as it should."""
    said: list[str] = []
    if hold.why:  # also while another try is under way
        said.append(hold.why)
    elif decision.missing and limit.why:
        said.append(limit.why)
    stuck = [
        machines[member.name].problem
        for member in view.members
        if member.pool == pool.name and member.state is MemberState.STARTING and machines[member.name].problem
    ]
    if stuck:
        said.append(f"{len(stuck)} on the way: {stuck[0]}")
    said += over_budget
    return "; ".join(said)
