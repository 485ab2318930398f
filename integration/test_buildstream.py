"""BuildStream's artifact and source caches: what one machine pushed, another one pulls (Remote Asset, CAS)."""

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.buildstream import BuildStream, lay_out_project, processed
from integration.server import Server, running_server


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

    expected = {
        "share/both.txt": ("file", "from the project\nfrom elsewhere\n"),
        "share/link": ("link", "both.txt"),
        "share/run.sh": ("program", "#!/bin/sh\necho ran\n"),
    }
    assert contents(tmp_path / "first-out") == expected
    assert contents(tmp_path / "second-out") == expected

    # The origin of the source is gone, so only the source cache has it.
    remote_file.unlink()
    third = BuildStream(project, tmp_path / "third", cache_server.address)
    fetched = third.fetch_sources("hello.bst").expect()
    assert processed(fetched, "Fetch") >= 1
    assert "Pulled source" in fetched.stderr


def test_what_was_pushed_outlives_a_restart_of_the_server(
    cache_server: Server, tmp_path: Path, remote_file: Path
) -> None:
    project = lay_out_project(tmp_path / "project", remote_file)
    BuildStream(project, tmp_path / "first", cache_server.address).build("hello.bst").expect()
    cache_server.stop()
    cache_server.restart()

    pulled = BuildStream(project, tmp_path / "second", cache_server.address).build("hello.bst").expect()

    assert processed(pulled, "Build") == 0
