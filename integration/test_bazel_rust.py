"""Bazel builds and tests a workspace of Rust crates remotely, with rules of our own around Debian's rustc."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.bazel import INSTALL_COMMAND, Bazel, execution_flags, running_bazel
from integration.outcome import Outcome
from integration.server import Server
from integration.workspace import lay_out_workspace

RUSTC = Path("/usr/bin/rustc")
# Collatz steps of 27, median of the primes below 100, digits of the 50th Fibonacci number, primes below 1000.
ANSWER = "answer=111041046168\n"
TESTS = 3


@dataclass(frozen=True, slots=True)
class RustBuild:
    """The workspace after its clean remote build and test run."""

    bazel: Bazel
    server: Server
    first: Outcome


@pytest.fixture(scope="module")
def built(rexec_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RustBuild]:
    if not RUSTC.exists():
        raise AssertionError(f"{RUSTC} is not installed: run `{INSTALL_COMMAND}`")
    folder = tmp_path_factory.mktemp("rust")
    workspace = lay_out_workspace("rust", folder / "workspace")
    flags = (f"--define=rustc={RUSTC}", *execution_flags(rexec_server.address))
    with running_bazel(workspace, folder / "bazel", flags) as bazel:
        first = bazel.test("//...").expect()
        yield RustBuild(bazel, rexec_server, first)


def printed_by(program: Path) -> str:
    return subprocess.run([program], check=True, capture_output=True, text=True, timeout=30).stdout


def test_crates_compile_and_their_tests_pass_on_the_workers(built: RustBuild) -> None:
    processes = built.first.processes
    # 7 libraries, 1 binary, 3 tests and 1 generated source; each test then runs and writes its XML.
    assert processes.remote == 12 + 2 * TESTS
    assert processes.cache_hits == 0
    assert processes.elsewhere == {}
    assert f"Executed {TESTS} out of {TESTS} tests: {TESTS} tests pass." in built.first.stdout
    assert built.server.counts().executed >= processes.remote


def test_the_binary_prints_what_the_crates_compute(built: RustBuild) -> None:
    assert printed_by(built.bazel.bin / "app" / "main") == ANSWER


def test_a_second_run_after_clean_executes_nothing(built: RustBuild) -> None:
    before = built.server.counts()
    built.bazel.clean()
    outcome = built.bazel.test("//...").expect()
    assert outcome.processes.cache_hits == built.first.processes.remote
    assert outcome.processes.remote == 0
    assert outcome.processes.elsewhere == {}
    assert built.server.counts().executed == before.executed
    assert printed_by(built.bazel.bin / "app" / "main") == ANSWER


def test_a_changed_crate_rebuilds_only_what_depends_on_it(built: RustBuild) -> None:
    built.bazel.build("//app:main").expect()
    source = built.bazel.workspace / "digits" / "digits.rs"
    original = source.read_text()
    before = built.server.counts()
    try:
        source.write_text(original.replace(".sum()", ".sum::<u64>() + 1"))
        processes = built.bazel.build("//app:main").expect().processes
        # digits, report and the binary.
        assert processes.remote == 3
        built.server.expect_executions(before, 3)
        assert printed_by(built.bazel.bin / "app" / "main") == "answer=111041047168\n"
    finally:
        source.write_text(original)
