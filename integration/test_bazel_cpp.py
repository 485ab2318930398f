"""Bazel builds and tests the C++ workspace remotely: all of it, once, and only what changed afterwards."""

import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.bazel import Bazel, cache_flags, execution_flags, running_bazel
from integration.outcome import Outcome
from integration.server import Counts, Server, running_server
from integration.workspace import lay_out_workspace
from integration.workspaces import generate_cpp

MINIMAL = ("--remote_download_minimal",)


@dataclass(frozen=True, slots=True)
class CppBuild:
    """The workspace after its clean remote build; the action cache of the server is warm from here on."""

    bazel: Bazel
    server: Server
    first: Outcome
    first_counts: Counts


@pytest.fixture(scope="module")
def built(rexec_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CppBuild]:
    folder = tmp_path_factory.mktemp("cpp")
    workspace = lay_out_workspace("cpp", folder / "workspace")
    with running_bazel(workspace, folder / "bazel", execution_flags(rexec_server.address)) as bazel:
        first = bazel.build("//...").expect()
        rexec_server.wait_for_executions(first.processes.remote, deadline_seconds=10)
        yield CppBuild(bazel, rexec_server, first, rexec_server.counts())


@pytest.fixture
def clean(built: CppBuild) -> CppBuild:
    """The same with nothing built: what follows comes from the action cache or is run again."""
    built.bazel.clean()
    return built


def printed_by(program: Path) -> str:
    return subprocess.run([program], check=True, capture_output=True, text=True, timeout=30).stdout


def total(addends: generate_cpp.Addends | None = None) -> str:
    return f"total={generate_cpp.expected_total(addends)}\n"


def edit_unit(bazel: Bazel, addend: int) -> generate_cpp.Addends:
    """Change one source so that its value grows by `addend`; 0 is the original."""
    addends = {generate_cpp.EDITED_UNIT: addend}
    generate_cpp.write_unit(bazel.workspace, *generate_cpp.EDITED_UNIT, addends)
    return addends


def test_a_clean_build_runs_every_action_on_the_workers(built: CppBuild) -> None:
    processes = built.first.processes
    assert processes.remote > generate_cpp.TRANSLATION_UNITS
    assert processes.elsewhere == {}
    assert processes.cache_hits == 0
    assert built.first_counts.executed == processes.remote
    assert built.first_counts.hits == 0


def test_the_binary_that_the_workers_linked_prints_what_the_sources_say(clean: CppBuild) -> None:
    clean.bazel.build("//app:main").expect()
    assert printed_by(clean.bazel.bin / "app" / "main") == total()


def test_a_rebuild_after_clean_is_served_wholly_from_the_action_cache(clean: CppBuild) -> None:
    before = clean.server.counts()
    processes = clean.bazel.build("//...").expect().processes
    assert processes.cache_hits == clean.first.processes.remote
    assert processes.remote == 0
    assert processes.elsewhere == {}
    after = clean.server.counts()
    assert after.executed == before.executed
    assert after.hits - before.hits == processes.cache_hits


def test_a_changed_source_is_compiled_and_linked_and_nothing_else(clean: CppBuild) -> None:
    clean.bazel.build("//app:main").expect()
    before = clean.server.counts()
    try:
        addends = edit_unit(clean.bazel, 5)
        processes = clean.bazel.build("//app:main").expect().processes
        assert processes.remote == 2
        assert processes.cache_hits == 0
        clean.server.expect_executions(before, 2)
        assert printed_by(clean.bazel.bin / "app" / "main") == total(addends)
    finally:
        edit_unit(clean.bazel, 0)


def test_a_source_that_was_only_touched_costs_nothing(clean: CppBuild) -> None:
    clean.bazel.build("//app:main").expect()
    before = clean.server.counts()
    os.utime(edited_path(clean.bazel))
    processes = clean.bazel.build("//app:main").expect().processes
    assert (processes.remote, processes.cache_hits, processes.elsewhere) == (0, 0, {})
    assert clean.server.counts() == before


def edited_path(bazel: Bazel) -> Path:
    library, unit = generate_cpp.EDITED_UNIT
    return bazel.workspace / generate_cpp.library_name(library) / f"unit{unit}.cc"


def test_tests_run_on_the_workers_and_their_results_are_cached(clean: CppBuild) -> None:
    before = clean.server.counts()
    outcome = clean.bazel.test("//...").expect()
    assert "Executed 6 out of 6 tests: 6 tests pass." in outcome.stdout
    assert outcome.processes.elsewhere == {}
    # Eight runs, the sharded test being three, each followed by an action that writes its XML.
    assert outcome.processes.remote == 16
    clean.server.expect_executions(before, 16)
    logs = clean.bazel.test_logs / "tests"
    assert f"saw {total()}" in (logs / "shell_test" / "test.log").read_text()
    assert "note.txt" in (logs / "environment_test" / "test.outputs_manifest" / "MANIFEST").read_text()

    clean.bazel.clean()
    before = clean.server.counts()
    again = clean.bazel.test("//...").expect()
    assert again.processes.remote == 0
    assert again.processes.elsewhere == {}
    assert "Executed 0 out of 6 tests: 6 tests pass." in again.stdout
    assert clean.server.counts().executed == before.executed


def test_a_minimal_build_downloads_nothing_and_its_outputs_can_be_had_later(clean: CppBuild) -> None:
    processes = clean.bazel.build("//...", flags=MINIMAL).expect().processes
    assert processes.cache_hits == clean.first.processes.remote
    assert processes.elsewhere == {}
    program = clean.bazel.bin / "app" / "main"
    assert not program.exists()
    clean.bazel.build("//app:main", flags=["--remote_download_toplevel"]).expect()
    assert printed_by(program) == total()


def test_actions_run_on_inputs_that_only_the_server_has(clean: CppBuild) -> None:
    clean.bazel.build("//app:main", flags=MINIMAL).expect()
    before = clean.server.counts()
    try:
        addends = edit_unit(clean.bazel, 7)
        processes = clean.bazel.build("//app:main", flags=MINIMAL).expect().processes
        assert processes.remote == 2
        clean.server.expect_executions(before, 2)
        program = clean.bazel.bin / "app" / "main"
        assert not program.exists()
        clean.bazel.build("//app:main", flags=["--remote_download_toplevel"]).expect()
        assert printed_by(program) == total(addends)
    finally:
        edit_unit(clean.bazel, 0)


def test_a_tree_artifact_arrives_with_nested_files_and_executables(clean: CppBuild) -> None:
    clean.bazel.build("//outputs:grove_listing").expect()
    grove = clean.bazel.bin / "outputs" / "grove"
    files = {str(path.relative_to(grove)): path.read_text() for path in grove.rglob("*") if path.is_file()}
    assert files == {
        "full/one.txt": "one",
        "full/deep/two.txt": "two",
        "full/deep/deeper/three.txt": "three",
        "full/run.sh": "#!/bin/sh\necho ran\n",
    }
    # The tree also holds an empty directory, which must not disturb; this Bazel makes folders for files only.
    assert (grove / "full" / "run.sh").stat().st_mode & stat.S_IXUSR
    listing = (clean.bazel.bin / "outputs" / "grove_listing.txt").read_text()
    assert listing.split() == sorted(f"./{name}" for name in files)


def test_a_symlink_that_an_action_makes_arrives_as_a_symlink(clean: CppBuild) -> None:
    before = clean.server.counts()
    outcome = clean.bazel.build("//outputs:pair", flags=["--noremote_accept_cached"]).expect()
    assert outcome.processes.remote == 1
    clean.server.expect_executions(before, 1)
    link = clean.bazel.bin / "outputs" / "pair_link.txt"
    assert os.readlink(link) == "pair_target.txt"
    assert link.read_text() == "at the end of the link"


def test_an_action_that_must_not_be_cached_runs_each_time(clean: CppBuild) -> None:
    before = clean.server.counts()
    written = []
    for _ in range(2):
        assert clean.bazel.build("//failing:uncached").expect().processes.remote == 1
        written.append((clean.bazel.bin / "failing" / "uncached.txt").read_text())
        clean.bazel.clean()
    clean.server.expect_executions(before, 2)
    assert written[0] != written[1]


def test_a_server_without_workers_is_a_cache(clean: CppBuild, tmp_path: Path) -> None:
    with running_server(tmp_path, slots=0) as server:
        bazel = clean.bazel.using(cache_flags(server.address))
        first = bazel.build("//lib01").expect().processes
        assert first.by_strategy["local"] >= 2 * generate_cpp.UNITS_PER_LIBRARY
        bazel.clean()
        again = bazel.build("//lib01").expect().processes
        assert again.cache_hits == first.by_strategy["local"]
        assert again.elsewhere == {}
        counts = server.counts()
        assert counts.executed == 0
        assert counts.hits == again.cache_hits
