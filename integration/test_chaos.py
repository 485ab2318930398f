"""Bazel builds 300 actions while processes are killed, and notices nothing."""

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.action_log import longest_gap, needless, read
from integration.bazel import Bazel, execution_flags, running_bazel
from integration.chaos import chaos
from integration.installation import Death, Installation, Role, all_in_one, roles_apart
from integration.outcome import Outcome
from integration.waiting import wait_until
from integration.workspace import lay_out_shims
from integration.workspaces import generate_chaos

ROUNDS = int(os.environ.get("REXEC_CHAOS_ROUNDS", "3"))
SEED = int(os.environ.get("REXEC_CHAOS_SEED", "1"))
"""Of the first round; each further one has the next number."""
BUILD_SECONDS = 200.0
"""What no build may take, with whatever deaths: undisturbed it is one minute."""
MAX_PAUSE_SECONDS = 2.0
"""From the moment that a scheduler is asked to end until a worker can be given work by the next."""


class Build:
    """The workspace, Bazel and the log of the actions."""

    def __init__(self, bazel: Bazel, log: Path) -> None:
        self.bazel = bazel
        self.log = log

    def wait_for_runs(self, number: int) -> None:
        """Return once so many actions have begun."""
        wait_until(lambda: self.log.exists() and len(read(self.log)) >= number, f"{number} actions", 120)

    def expect_right(self, outcome: Outcome, deaths: Sequence[Death]) -> None:
        """Everything was built, right, without a word of failure, and nothing twice without need."""
        complaints = [
            line for line in outcome.stderr.splitlines() if line.startswith(("ERROR", "WARNING", "FAILED")) or "retry" in line
        ]  # fmt: skip
        assert complaints == []
        assert outcome.processes.elsewhere == {}
        assert outcome.processes.remote + outcome.processes.cache_hits == generate_chaos.ACTIONS
        for name, value in generate_chaos.expected_values().items():
            assert int((self.bazel.bin / "rules" / f"{name}.txt").read_text()) == value, name
        program = self.bazel.bin / "program" / "program"
        printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=30).stdout
        assert printed == f"total={generate_chaos.expected_total()}\n"
        runs = read(self.log)
        assert {run.action for run in runs} == generate_chaos.action_names()
        assert needless(runs, deaths) == []


@contextmanager
def building(folder: Path, installation: Installation) -> Iterator[Build]:
    """A Bazel with the workspace, whose flags name the installation and are else Bazel's defaults."""
    workspace = folder / "workspace"
    workspace.mkdir(parents=True)
    lay_out_shims(workspace)
    log = folder / "actions.log"
    compiler = generate_chaos.write(workspace, log)
    flags = (*execution_flags(installation.address), f"--repo_env=CC={compiler}")
    with running_bazel(workspace, folder / "bazel", flags) as bazel:
        yield Build(bazel, log)


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_any_process_may_be_killed_at_any_time(seed: int, tmp_path: Path) -> None:
    roles = (Role.FRONTEND, Role.SCHEDULER, Role.WORKER)
    with roles_apart(tmp_path / "rexec") as installation, building(tmp_path, installation) as build:
        command = build.bazel.start("build", "//...")
        build.wait_for_runs(1)
        with chaos(installation, roles, seed) as kills:
            outcome = command.wait(BUILD_SECONDS)
        print(f"seed {seed}: {[(death.member, round(death.ready_at - death.at, 1)) for death in kills.deaths]}")
        build.expect_right(outcome.expect(), kills.deaths)
        assert len(kills.deaths) >= 5


def test_a_server_that_holds_everything_may_be_killed_at_any_time(tmp_path: Path) -> None:
    with all_in_one(tmp_path / "rexec") as installation, building(tmp_path, installation) as build:
        # Bazel's own five retries take three seconds, in which an idle machine restarts the server and a loaded one does not.
        command = build.bazel.start("build", "//...", flags=["--remote_retries=12"])
        build.wait_for_runs(60)
        with chaos(installation, (Role.SERVER,), SEED, period_seconds=10) as kills:
            outcome = command.wait(BUILD_SECONDS)
        build.expect_right(outcome.expect(), kills.deaths)
        assert len(kills.deaths) >= 1


def test_schedulers_that_take_turns_are_not_noticed(tmp_path: Path) -> None:
    with roles_apart(tmp_path / "rexec") as installation, building(tmp_path, installation) as build:
        (scheduler,) = installation.of_role(Role.SCHEDULER)
        command = build.bazel.start("build", "//...")
        deaths = []
        for number in (40, 100, 160):
            build.wait_for_runs(number)
            command.expect_running()
            deaths.append(scheduler.take_turns())
        build.expect_right(command.wait(BUILD_SECONDS).expect(), deaths)
        for death in deaths:
            pause = scheduler.said_at("worker attached", death.at) - death.at
            print(
                f"no worker for {pause:.2f} s, no start for {longest_gap(read(build.log), death.at, death.ready_at):.2f} s"
            )
            assert pause < MAX_PAUSE_SECONDS
