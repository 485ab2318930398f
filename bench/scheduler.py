"""What an action costs the server, and how soon a worker has it: no-op actions through the whole of `rexec serve`.

    python -m bench.scheduler [--actions N] [--workers N] [--buildgrid DIR]

Three processes on one machine talk gRPC: the server without workers of its own, a process of simulated workers that answer
every lease at once, and this one, which executes actions that are in the store already and in no action cache. So what is
measured is Execute, lease, result and completion. Both clients' clocks are the machine's monotonic clock.

The rows: clients in a closed loop, 1 to 1,000 of them; actions asked for at a fixed rate; N actions that are all queued
before 1,000 workers take them (their latency is time in the queue, and not shown). CPU is that of the server's process,
user and system. The three processes share the machine's cores, so rates are lower bounds.

With --buildgrid the same client asks the same of BuildGrid with PostgreSQL (see buildgrid.py) and as many simulated bots, which
speak its own protocol; the CPU is that of its process and of the database's. It is asked for fewer actions, for the time that
they take. Its row of 1,000 clients is missing, because each of them would hold one of its threads, and so is that of the fixed
rate, which it does not reach. Comparable are rates, CPU and completion. Its lease comes in the answer to a call that the bot
repeats, as ours does over an open stream.

The exit code is 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.buildgrid import Bots, BuildGrid, expect_installed, running_buildgrid, simulated_bots
from bench.load import Load, Timing
from bench.simulated_workers import SimulatedWorkers, simulated_workers
from integration.process import cpu_seconds
from integration.server import Server, running_server

CPU_MS_GOAL = 1.5
P50_MS_GOAL = 5.0
P99_MS_GOAL = 25.0
IDLE_PERCENT_GOAL = 5.0
RATIO_GOAL = 20.0
"""So many times the rate of BuildGrid."""
RATE = 200.0
"""Actions each second at which the dispatch goals hold."""

CONCURRENCIES = (1, 10, 100, 1_000)
FEW_WORKERS = 10
SLOTS = 100
"""Of each of the few workers: as many together as the most clients at once."""
BUILDGRID_PLAN = {1: 20, 10: 150, 100: 400}
"""Actions asked of BuildGrid, by how many at once."""
BUILDGRID_SLOTS = 10
WARM_UP_ACTIONS = 300
PACED_SECONDS = 8.0
IDLE_SECONDS = 10.0
"""One heartbeat of every worker at least."""
LIMIT_SECONDS = 60.0
"""The longest that one row may take."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    actions: int
    seconds: float
    cpu_ms: float
    """Of the server, for each action."""
    to_lease_ms: tuple[float, float] | None = None
    """Median and 99th percentile, from the Execute call to the lease at the worker."""
    to_completion_ms: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and what it may be at most, or has to be at least."""

    name: str
    limit: float
    figure: float
    at_least: bool = False
    """Whether the limit is what it has to reach."""

    @property
    def met(self) -> bool:
        return self.figure >= self.limit if self.at_least else self.figure <= self.limit


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return 1e3 * ordered[len(ordered) // 2], 1e3 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]


def row(name: str, timings: Sequence[Timing], leased_at: dict[str, float], cpu: float) -> Row:
    """What a round of actions amounts to; `cpu` in seconds, of the server."""
    first = min(timing.sent_at for timing in timings)
    last = max(timing.completed_at for timing in timings)
    return Row(
        name,
        len(timings),
        last - first,
        1e3 * cpu / len(timings),
        percentiles([leased_at[timing.action_hash] - timing.sent_at for timing in timings]),
        percentiles([timing.completed_at - timing.sent_at for timing in timings]),
    )


async def with_few_workers(server: Server, workers: SimulatedWorkers, actions: int) -> list[Row]:
    """Closed loops and a fixed rate, with room for every action."""
    rows = []
    plan = {concurrency: actions // (20 if concurrency == 1 else 3) for concurrency in CONCURRENCIES}
    paced = int(RATE * PACED_SECONDS)
    async with Load(server.address, WARM_UP_ACTIONS + sum(plan.values()) + paced) as load:
        await load.at_concurrency(10, WARM_UP_ACTIONS)
        for concurrency, count in plan.items():
            workers.take()
            before = cpu_seconds(server.process.pid)
            async with asyncio.timeout(LIMIT_SECONDS):
                timings = await load.at_concurrency(concurrency, count)
            cpu = cpu_seconds(server.process.pid) - before
            rows.append(row(f"{concurrency:,} at once", timings, workers.take(), cpu))
        before = cpu_seconds(server.process.pid)
        async with asyncio.timeout(LIMIT_SECONDS):
            timings = await load.at_rate(RATE, paced)
        cpu = cpu_seconds(server.process.pid) - before
        rows.append(row(f"at {RATE:g}/s", timings, workers.take(), cpu))
    return rows


async def with_many_workers(server: Server, workers: SimulatedWorkers, actions: int, count: int) -> Row:
    """All actions are queued, then the workers begin."""
    async with Load(server.address, actions) as load, asyncio.timeout(2 * LIMIT_SECONDS):
        before = cpu_seconds(server.process.pid)
        started_at = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(load.at_concurrency(actions, actions))
            await load.announced(actions)
            queued_seconds = time.monotonic() - started_at
            begun_at = time.monotonic()
            await asyncio.to_thread(workers.grant)
        timings = running.result()
        cpu = cpu_seconds(server.process.pid) - before
    seconds = queued_seconds + max(timing.completed_at for timing in timings) - begun_at
    return Row(f"{actions:,} queued, {count:,} workers", len(timings), seconds, 1e3 * cpu / len(timings))


async def of_buildgrid(buildgrid: BuildGrid, bots: Bots) -> list[Row]:
    """Closed loops, as `with_few_workers` has them."""
    rows = []
    async with Load(buildgrid.address, 20 + sum(BUILDGRID_PLAN.values())) as load:
        await load.at_concurrency(5, 20)
        for concurrency, count in BUILDGRID_PLAN.items():
            bots.take()
            before = sum(buildgrid.cpu_seconds())
            async with asyncio.timeout(LIMIT_SECONDS):
                timings = await load.at_concurrency(concurrency, count)
            cpu = sum(buildgrid.cpu_seconds()) - before
            rows.append(row(f"BuildGrid, {concurrency:,} at once", timings, bots.take(), cpu))
    return rows


def compared(rows: Sequence[Row], theirs: Sequence[Row]) -> list[Goal]:
    """Rates and CPU held against those of BuildGrid with as many clients at once."""
    found = []
    for one in theirs:
        name = one.name.removeprefix("BuildGrid, ")
        ours = next(row for row in rows if row.name == name)
        ratio = (ours.actions / ours.seconds) / (one.actions / one.seconds)
        found.append(Goal(f"times the rate of BuildGrid, {name}", RATIO_GOAL, ratio, at_least=True))
        print(
            f"{name}: {ratio:.0f} times the rate of BuildGrid at {100 * ours.cpu_ms / one.cpu_ms:.1f} % of its CPU an action"
        )
    return found


def idle_percent(server: Server) -> float:
    """CPU of the server while nothing happens but heartbeats, in percent of one core."""
    time.sleep(1)
    before, started_at = cpu_seconds(server.process.pid), time.monotonic()
    time.sleep(IDLE_SECONDS)
    return 100 * (cpu_seconds(server.process.pid) - before) / (time.monotonic() - started_at)


def run(actions: int, count: int, folder: Path) -> tuple[list[Row], float]:
    """All rows, and the CPU of the idle server in percent. Raises AssertionError when an action does not run."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        with (
            running_server(folder / "few", slots=0) as server,
            simulated_workers(server.address, FEW_WORKERS, SLOTS) as workers,
        ):
            workers.grant()
            rows = runner.run(with_few_workers(server, workers, actions))
        with (
            running_server(folder / "many", slots=0) as server,
            simulated_workers(server.address, count, slots=1) as workers,
        ):
            idle = idle_percent(server)
            rows.append(runner.run(with_many_workers(server, workers, actions, count)))
    return rows, idle


def table(rows: Sequence[Row]) -> str:
    """The rows as text."""
    lines = [
        f"{'':<30}{'actions':>8}{'/s':>7}{'CPU ms':>8}   {'to lease p50, p99 ms':>21}   {'to completion p50, p99 ms':>26}"
    ]
    for one in rows:
        latencies = "".join(
            f"   {pair[0]:>{width - 9}.2f}{pair[1]:>9.2f}" if pair else "   " + "-".rjust(width)
            for pair, width in ((one.to_lease_ms, 21), (one.to_completion_ms, 26))
        )
        rate = one.actions / one.seconds
        lines.append(f"{one.name:<30}{one.actions:>8,}{rate:>7.0f}{one.cpu_ms:>8.2f}{latencies}")
    return "\n".join(lines)


def goals(rows: Sequence[Row], idle: float) -> list[Goal]:
    """The goals with their figures. That of the CPU is the worst row's."""
    paced = next(one for one in rows if one.name.startswith("at "))
    assert paced.to_lease_ms is not None
    return [
        Goal("server CPU ms for each action, worst row", CPU_MS_GOAL, max(one.cpu_ms for one in rows)),
        Goal(f"ms to lease at {RATE:g}/s, p50", P50_MS_GOAL, paced.to_lease_ms[0]),
        Goal(f"ms to lease at {RATE:g}/s, p99", P99_MS_GOAL, paced.to_lease_ms[1]),
        Goal("% of a core, idle with all workers", IDLE_PERCENT_GOAL, idle),
    ]


def main() -> int:
    """Run all rows, print table and goals, and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.scheduler", description="no-op actions through the whole server")
    parser.add_argument("--actions", type=int, default=10_000, help="queued at once; a row has a third (default 10000)")
    parser.add_argument("--workers", type=int, default=1_000, help="attached at once (default 1000)")
    parser.add_argument("--buildgrid", type=Path, metavar="DIR", help="an installation of BuildGrid to compare with")
    arguments = parser.parse_args()
    theirs: list[Row] = []
    if arguments.buildgrid is not None:
        try:
            expect_installed(arguments.buildgrid)
        except AssertionError as error:
            parser.error(str(error))
        with (
            running_buildgrid(arguments.buildgrid) as buildgrid,
            simulated_bots(buildgrid, FEW_WORKERS, BUILDGRID_SLOTS) as bots,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            theirs = runner.run(of_buildgrid(buildgrid, bots))
    if arguments.actions < 100 or arguments.workers < 1:
        parser.error("expected at least 100 actions and 1 worker")
    with tempfile.TemporaryDirectory(prefix="rexec-bench-") as folder:
        rows, idle = run(arguments.actions, arguments.workers, Path(folder))
    print(table([*rows, *theirs]))
    reached = [*goals(rows, idle), *compared(rows, theirs)]
    for goal in reached:
        bound = "at least" if goal.at_least else "at most"
        print(f"{'met   ' if goal.met else 'MISSED'}  {goal.name}: {goal.figure:.2f}, {bound} {goal.limit:g}")
    return 0 if all(goal.met for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
