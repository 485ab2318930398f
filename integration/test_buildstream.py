"""BuildStream's artifact and source caches: what one machine pushed, another one pulls (Remote Asset, CAS). And its builds,
which run where the input root is the root of the file system."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.buildstream import BuildStream, lay_out_project, processed
from integration.server import Server, running_server

HELLO = {
    "share/both.txt": ("file", "from the project\nfrom elsewhere\n"),
    "share/link": ("link", "both.txt"),
    "share/run.sh": ("program", "#!/bin/sh\necho ran\n"),
}
WHOLE = {
    "copy.txt": ("file", "from the project\nfrom elsewhere\n"),
    "root.txt": ("file", "inputs\n"),
    "user.txt": ("file", "0\n"),
}
_BUILDING = """\
[worker]
isolation = "bubblewrap"

[worker.bubblewrap]
root = "inputs"
"""


@pytest.fixture(scope="module")
def building_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose workers give actions their input root as the file system's root."""
    folder = tmp_path_factory.mktemp("building")
    configuration = folder / "rexec.toml"
    configuration.write_text(_BUILDING)
    with running_server(folder / "server", slots=2, extra_flags=("--config", str(configuration))) as server:
        yield server


@pytest.fixture(scope="module")
def cache_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without workers: BuildStream builds on its own machine here."""
    with running_server(tmp_path_factory.mktemp("server"), slots=0) as server:
        yield server


@pytest.fixture
def remote_file(tmp_path: Path) -> Path:
    """Where the project downloads one of its sources from."""
    file = tmp_path / "remote.txt"
    file.write_text("from elsewhere\n")
    return file


def contents(directory: Path) -> dict[str, tuple[str, str]]:
    """Kind and content of everything below, by relative path; executable files are a kind of their own."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = ("link", str(path.readlink()))
        elif path.is_file():
            executable = bool(path.stat().st_mode & stat.S_IXUSR)
            found[name] = ("program" if executable else "file", path.read_text())
    return found


def test_artifacts_and_sources_pushed_by_one_machine_are_pulled_by_another(
    cache_server: Server, tmp_path: Path, remote_file: Path
) -> None:
    project = lay_out_project(tmp_path / "project", remote_file)
    first = BuildStream(project, tmp_path / "first", cache_server.address)
    built = first.build("hello.bst").expect()
    assert processed(built, "Build") == 2
    assert processed(built, "Push") == 2
    assert processed(built, "Src-push") == 2
    first.checkout("hello.bst", tmp_path / "first-out")

    second = BuildStream(project, tmp_path / "second", cache_server.address)
    pulled = second.build("hello.bst").expect()
    assert processed(pulled, "Pull") >= 1
    assert processed(pulled, "Build") == 0
    second.checkout("hello.bst", tmp_path / "second-out")

    assert contents(tmp_path / "first-out") == HELLO
    assert contents(tmp_path / "second-out") == HELLO

    # The origin of the source is gone, so only the source cache has it.
    remote_file.unlink()
    third = BuildStream(project, tmp_path / "third", cache_server.address)
    fetched = third.fetch_sources("hello.bst").expect()
    assert processed(fetched, "Fetch") >= 1
    assert "Pulled source" in fetched.stderr


def test_a_build_runs_on_isolated_workers_and_another_machine_pulls_what_they_made(
    building_server: Server, tmp_path: Path, remote_file: Path
) -> None:
    project = lay_out_project(tmp_path / "project", remote_file)
    before = building_server.counts()
    first = BuildStream(project, tmp_path / "first", building_server.address, remote_execution=True)
    built = first.build("whole.bst").expect()
    assert processed(built, "Build") == 3
    # Both elements that run something; the import runs nothing.
    building_server.expect_executions(before, 2)
    first.checkout("hello.bst", tmp_path / "hello")
    first.checkout("whole.bst", tmp_path / "whole")

    second = BuildStream(project, tmp_path / "second", building_server.address, remote_execution=True)
    pulled = second.build("whole.bst").expect()
    assert processed(pulled, "Build") == 0
    second.checkout("whole.bst", tmp_path / "whole-again")

    building_server.expect_executions(before, 2)
    assert contents(tmp_path / "hello") == HELLO
    assert contents(tmp_path / "whole") == contents(tmp_path / "whole-again") == WHOLE


def test_an_action_that_ran_before_is_not_run_again_for_a_machine_without_artifacts(
    building_server: Server, tmp_path: Path, remote_file: Path
) -> None:
    """Artifacts are found by what they are made of; the action cache finds what they would be made by."""
    project = lay_out_project(tmp_path / "project", remote_file)
    BuildStream(project, tmp_path / "first", building_server.address, remote_execution=True).build("hello.bst").expect()
    before = building_server.counts()

    second = BuildStream(project, tmp_path / "second", building_server.address, remote_execution=True, caches=False)
    assert processed(second.build("hello.bst").expect(), "Build") == 2

    building_server.expect_executions(before, 0)
    second.checkout("hello.bst", tmp_path / "hello")
    assert contents(tmp_path / "hello") == HELLO


def test_a_failing_command_is_told_with_what_it_printed(
    building_server: Server, tmp_path: Path, remote_file: Path
) -> None:
    project = lay_out_project(tmp_path / "project", remote_file)
    element = project / "elements" / "hello.bst"
    element.write_text(element.read_text().replace("cp run.sh", "cp not-there.sh"))

    failed = BuildStream(project, tmp_path / "first", building_server.address, remote_execution=True).build("hello.bst")

    assert failed.exit_code != 0
    assert "not-there.sh': No such file or directory" in failed.stderr


def test_what_was_pushed_outlives_a_restart_of_the_server(
    cache_server: Server, tmp_path: Path, remote_file: Path
) -> None:
    project = lay_out_project(tmp_path / "project", remote_file)
    BuildStream(project, tmp_path / "first", cache_server.address).build("hello.bst").expect()
    cache_server.stop()
    cache_server.restart()

    pulled = BuildStream(project, tmp_path / "second", cache_server.address).build("hello.bst").expect()

    assert processed(pulled, "Build") == 0
