"""What Bazel says when an action fails, and that it need not say anything when a process of ours is killed."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.bazel import Bazel, execution_flags, local_flags, running_bazel
from integration.server import Server, running_server
from integration.workspace import lay_out_workspace
from integration.workspaces import generate_cpp

# Everything is run again, whatever the action cache holds.
RUN_AGAIN = ("--noremote_accept_cached",)
# The units, main.cc, the genrule and the link; objects are linked without archives.
ACTIONS_OF_MAIN = generate_cpp.TRANSLATION_UNITS + 3
BAZEL_TESTS_FAILED = 3


@pytest.fixture(scope="module")
def bazel(rexec_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bazel]:
    folder = tmp_path_factory.mktemp("failures")
    workspace = lay_out_workspace("cpp", folder / "workspace")
    with running_bazel(workspace, folder / "bazel", execution_flags(rexec_server.address)) as running:
        yield running


def reported(stderr: str) -> list[str]:
    """The lines that are about the build: without progress, counts and times."""
    noise = ("INFO:", "Loading:", "Analyzing:", "[", "Starting local Bazel server")
    return [line for line in stderr.splitlines() if line and not line.startswith(noise)]


def expect_main_is_right(bazel: Bazel) -> None:
    program = bazel.bin / "app" / "main"
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=30).stdout
    assert printed == f"total={generate_cpp.expected_total()}\n"


@pytest.mark.parametrize("target", ["compile_error", "exit_code", "missing_output"])
def test_a_failing_action_is_reported_as_a_local_one_is(target: str, bazel: Bazel, rexec_server: Server) -> None:
    before = rexec_server.counts()
    remote = bazel.build(f"//failing:{target}").expect(1)
    rexec_server.expect_executions(before, 1)
    local = bazel.using(local_flags()).build(f"//failing:{target}").expect(1)
    assert reported(remote.stderr) == reported(local.stderr)
    assert remote.stdout == local.stdout


def test_the_compilers_words_reach_the_user(bazel: Bazel) -> None:
    stderr = bazel.build("//failing:compile_error").expect(1).stderr
    assert "failing/compile_error.cc:4:15: error:" in stderr
    assert "length_of_this_is_not_a_member" in stderr


@pytest.mark.parametrize("target", ["//failing:exit_code", "//failing:compile_error"])
def test_a_failure_is_not_remembered(target: str, bazel: Bazel, rexec_server: Server) -> None:
    bazel.build(target).expect(1)
    bazel.clean()
    before = rexec_server.counts()
    bazel.build(target).expect(1)
    rexec_server.expect_executions(before, 1)


def test_a_failing_test_shows_its_output(bazel: Bazel) -> None:
    outcome = bazel.test("//failing:wrong_test", flags=["--test_output=errors"]).expect(BAZEL_TESTS_FAILED)
    assert outcome.processes.elsewhere == {}
    assert "two and two make five" in outcome.stdout
    assert "Executed 1 out of 1 test: 1 fails remotely." in outcome.stdout


def test_a_test_that_never_ends_is_ended_and_reported_as_a_timeout(bazel: Bazel, rexec_server: Server) -> None:
    outcome = bazel.test("//failing:endless_test", flags=["--test_timeout=2"]).expect(BAZEL_TESTS_FAILED)
    assert "TIMEOUT: //failing:endless_test" in outcome.stderr + outcome.stdout
    assert outcome.processes.elsewhere == {}
    log = bazel.test_logs / "failing" / "endless_test" / "test.log"
    assert "started and waiting" in log.read_text()
    rexec_server.process.expect_running()


def test_a_worker_of_the_server_killed_in_mid_build_does_not_fail_it(bazel: Bazel, rexec_server: Server) -> None:
    bazel.clean()
    workers = rexec_server.worker_pids()
    assert workers
    before = rexec_server.counts()
    build = bazel.start("build", "//app:main", flags=RUN_AGAIN)
    rexec_server.wait_for_executions(before.executed + 10)
    build.expect_running()
    rexec_server.kill_worker(workers[0])
    outcome = build.wait().expect()
    assert outcome.processes.remote == ACTIONS_OF_MAIN
    assert outcome.processes.elsewhere == {}
    expect_main_is_right(bazel)


def test_a_worker_on_its_own_killed_in_mid_build_leaves_its_actions_to_the_others(bazel: Bazel, tmp_path: Path) -> None:
    bazel.clean()
    with running_server(tmp_path, slots=0) as server:
        doomed, _ = server.start_worker(), server.start_worker()
        build = bazel.using(execution_flags(server.address)).start("build", "//lib05")
        server.wait_for_executions(10)
        build.expect_running()
        doomed.kill()
        outcome = build.wait().expect()
        assert outcome.processes.remote > 6 * generate_cpp.UNITS_PER_LIBRARY
        assert outcome.processes.elsewhere == {}


def test_the_server_killed_and_started_again_in_mid_build_does_not_fail_it(bazel: Bazel, tmp_path: Path) -> None:
    bazel.clean()
    with running_server(tmp_path, slots=2) as server:
        # Bazel's default of five retries bridges about three seconds, in which an idle machine restarts the server and a
        # loaded one does not.
        flags = [*execution_flags(server.address), "--remote_retries=12"]
        build = bazel.using(flags).start("build", "//app:main")
        server.wait_for_executions(10)
        build.expect_running()
        server.kill()
        server.restart()
        outcome = build.wait().expect()
        assert outcome.processes.elsewhere == {}
        assert outcome.processes.remote + outcome.processes.cache_hits == ACTIONS_OF_MAIN
        assert server.counts().executed > 0
    expect_main_is_right(bazel)
