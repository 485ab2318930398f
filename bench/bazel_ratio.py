"""Compares Bazel's own build of the C++ workspace with the same build through rexec, in turns on one machine.

    python -m bench.bazel_ratio [--rounds N]

Each round is three builds from a clean output base: by Bazel itself with two jobs, remotely on two slots with the
action cache not asked, and remotely with every result in the action cache. Taking turns lets slow phases of the
machine hit all three alike; the table shows the fastest round of each kind, which was disturbed least, and the ratios
to Bazel's own build. CPU seconds are those of the server and its workers, without the compilers they start.

The goals are a ratio of at most 1.25 for the remote build and 0.2 for the cached one; the exit code is 1 when one is
missed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from integration.bazel import Bazel, execution_flags, local_flags, running_bazel
from integration.outcome import Outcome
from integration.server import Server, running_server
from integration.workspace import lay_out_workspace

REMOTE_GOAL = 1.25
CACHED_GOAL = 0.2


@dataclass(frozen=True, slots=True)
class Measurement:
    """One build."""

    wall_seconds: float
    server_cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: the rounds of one kind of build."""

    name: str
    measurements: tuple[Measurement, ...]

    @property
    def wall_seconds(self) -> float:
        return min(measurement.wall_seconds for measurement in self.measurements)

    @property
    def server_cpu_seconds(self) -> float:
        return min(measurement.server_cpu_seconds for measurement in self.measurements)


def measure(server: Server, bazel: Bazel, build: Callable[[], Outcome]) -> tuple[Measurement, Outcome]:
    """One build from a clean output base; loading and analysis are part of it, starting Bazel's server is not."""
    bazel.clean()
    before = server.cpu_seconds()
    outcome = build().expect()
    return Measurement(outcome.wall_seconds, server.cpu_seconds() - before), outcome


def run(rounds: int, folder: Path) -> list[Row]:
    """All builds. Raises AssertionError when one fails or ran elsewhere than its name says."""
    workspace = lay_out_workspace("cpp", folder / "workspace")
    found: dict[str, list[Measurement]] = {"local": [], "remote": [], "cached": []}
    with running_server(folder / "server", slots=2) as server, running_bazel(workspace, folder / "bazel") as bazel:
        remote = bazel.using(execution_flags(server.address))
        local = bazel.using(local_flags())
        # Bazel's start and its look at the compiler belong to no round.
        local.build("//...", flags=["--nobuild"]).expect()
        for _ in range(rounds):
            measurement, outcome = measure(server, bazel, lambda: local.build("//..."))
            spawns = outcome.processes.by_strategy["local"]
            found["local"].append(measurement)
            measurement, outcome = measure(
                server, bazel, lambda: remote.build("//...", flags=["--noremote_accept_cached"])
            )
            expect_spawns(outcome, "remote", spawns)
            found["remote"].append(measurement)
            measurement, outcome = measure(server, bazel, lambda: remote.build("//..."))
            expect_spawns(outcome, "remote cache hit", spawns)
            found["cached"].append(measurement)
    return [Row(name, tuple(measurements)) for name, measurements in found.items()]


def expect_spawns(outcome: Outcome, strategy: str, number: int) -> None:
    """Raises AssertionError unless so many spawns went that way and none another."""
    processes = outcome.processes
    if processes.by_strategy.get(strategy) != number or processes.elsewhere:
        raise AssertionError(f"expected {number} spawns as {strategy!r}, Bazel counted {processes.by_strategy}")


def table(rows: Sequence[Row]) -> str:
    """The fastest rounds, ratios to the first row, and the wall time of each round."""
    reference = rows[0].wall_seconds
    lines = [f"{'build':<8}{'wall s':>8}{'ratio':>8}{'server CPU s':>14}   rounds"]
    for row in rows:
        rounds = " ".join(f"{measurement.wall_seconds:.2f}" for measurement in row.measurements)
        lines.append(
            f"{row.name:<8}{row.wall_seconds:>8.2f}{row.wall_seconds / reference:>8.3f}"
            f"{row.server_cpu_seconds:>14.2f}   {rounds}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the rounds, print the table and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.bazel_ratio", description="Bazel alone against Bazel through rexec")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of three builds (default 3)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rexec-bench-") as folder:
        rows = run(arguments.rounds, Path(folder))
    print(table(rows))
    local, remote, cached = (row.wall_seconds for row in rows)
    missed = []
    if remote > REMOTE_GOAL * local:
        missed.append(f"remote over {REMOTE_GOAL}")
    if cached > CACHED_GOAL * local:
        missed.append(f"cached over {CACHED_GOAL}")
    print("goals missed: " + ", ".join(missed) if missed else "goals met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
