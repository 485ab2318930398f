"""Bazel and outputs that are more than small files: a gibibyte, ten thousand files, links, directories with nothing in them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.bazel import Bazel, execution_flags, running_bazel
from integration.outcome import Outcome
from integration.process import peak_bytes
from integration.server import Server, running_server
from integration.workspace import lay_out_workspace

MEBIBYTES = 1024
BLOCK = (b"one line of many\n" * (1 << 16))[: (1 << 20) - 8]
MOST_GROWTH_BYTES = 200 << 20
"""Of server and worker each, where an output takes 1024 MiB. Some 30 MiB were seen."""

# A gibibyte may take more than a minute where others use the machine too.
PATIENT = ("--remote_timeout=300",)
UNRESOLVED = ("--experimental_allow_unresolved_symlinks",)


@dataclass(frozen=True, slots=True)
class Bench:
    """A Bazel with the workspace, and its server."""

    bazel: Bazel
    server: Server

    def build(self, target: str, *flags: str) -> Outcome:
        """It ends well, and nothing ran anywhere but on the workers."""
        outcome = self.bazel.build(target, flags=flags).expect()
        assert outcome.processes.elsewhere == {}
        return outcome

    def built_twice(self, target: str, *flags: str) -> Outcome:
        """The first of two builds, of which the second begins with nothing and gets everything from the action cache."""
        first = self.build(target, "--noremote_accept_cached", *flags)
        before = described(self.bazel.bin)
        self.bazel.clean()
        counts = self.server.counts()
        again = self.build(target, *flags)
        assert (again.processes.remote, again.processes.cache_hits) == (0, first.processes.remote)
        assert self.server.counts().executed == counts.executed
        assert described(self.bazel.bin) == before
        return first

    def output(self, name: str) -> Path:
        return self.bazel.bin / name


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("outputs")
    workspace = lay_out_workspace("outputs", folder / "workspace")
    with (
        running_server(folder / "server", slots=2) as server,
        running_bazel(workspace, folder / "bazel", execution_flags(server.address)) as bazel,
    ):
        yield Bench(bazel, server)
    shutil.rmtree(folder / "server" / "state")  # some GiB, which pytest would keep for three runs


@pytest.fixture(autouse=True)
def nothing_built(bench: Bench) -> Iterator[None]:
    """Each test begins without outputs, and none of them stays on the disk."""
    yield
    bench.bazel.clean()


def described(folder: Path) -> dict[str, str]:
    """Kind or content of everything below, by relative path. Bazel makes every output executable, so nothing is said of that."""
    found = {}
    for parent, directories, files in os.walk(folder):
        for name in (*directories, *files):
            path = Path(parent, name)
            where = str(path.relative_to(folder))
            if path.is_symlink():
                found[where] = f"-> {os.readlink(path)}"
            elif path.is_dir():
                found[where] = "directory"
            else:
                found[where] = path.read_text()
    return found


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expected_large() -> str:
    whole = hashlib.sha256()
    for number in range(MEBIBYTES):
        whole.update(b"%08d" % number)
        whole.update(BLOCK)
    return whole.hexdigest()


def peaks(server: Server) -> dict[int, int]:
    """The most memory that the server and its workers have had so far, by process."""
    return {pid: peak_bytes(pid) for pid in (*server.pids(), *server.worker_pids())}


def test_an_output_of_a_gibibyte_arrives_whole_and_is_never_held_in_memory(bench: Bench) -> None:
    bench.build("//:hollow")  # what the first action takes is not the large one's
    before = peaks(bench.server)
    first = bench.build("//:large_measured", *PATIENT)
    assert first.processes.remote == 2
    expected = expected_large()
    # As the next action saw it, which had it as an input.
    assert bench.output("large_measured.out").read_text().split() == [expected, str(MEBIBYTES << 20)]
    large = bench.output("large.out")
    assert large.stat().st_size == MEBIBYTES << 20
    assert hash_of(large) == expected
    growth = {pid: peak - before[pid] for pid, peak in peaks(bench.server).items()}
    assert len(growth) == 2
    assert max(growth.values()) < MOST_GROWTH_BYTES

    bench.bazel.clean()
    again = bench.build("//:large_measured", *PATIENT)
    assert (again.processes.remote, again.processes.cache_hits) == (0, 2)
    assert hash_of(large) == expected
    growth = {pid: peak - before[pid] for pid, peak in peaks(bench.server).items()}
    assert max(growth.values()) < MOST_GROWTH_BYTES


def test_a_tree_of_ten_thousand_files_arrives_whole_and_is_an_input_of_the_next_action(bench: Bench) -> None:
    outcome = bench.built_twice("//:leaves_listing")
    assert outcome.processes.remote == 2
    expected = {f"f{folder}/l{leaf}.txt": f"leaf {leaf} of {folder}" for folder in range(100) for leaf in range(100)}
    listing = bench.output("leaves_listing.out").read_text().splitlines()
    assert {line.split("  ./")[1]: line.split("  ./")[0] for line in listing} == {
        name: hashlib.sha256(content.encode()).hexdigest() for name, content in expected.items()
    }
    bench.build("//:leaves")
    tree = bench.output("leaves")
    assert {str(path.relative_to(tree)): path.read_text() for path in tree.glob("*/*")} == expected


def test_links_beside_their_targets_arrive_as_links(bench: Bench) -> None:
    outcome = bench.built_twice("//:links")
    assert outcome.processes.remote == 1
    assert described(bench.bazel.bin) == {
        "links_file.txt": "the file",
        "links_folder": "directory",
        "links_folder/inner": "directory",
        "links_folder/inner/file.txt": "inner",
        "links_to_file": "-> links_file.txt",
        "links_to_folder": "-> links_folder",
    }


def test_links_inside_a_tree_arrive_as_links(bench: Bench) -> None:
    bench.built_twice("//:linked_tree")
    assert described(bench.output("linked_tree")) == {
        "real": "directory",
        "real/deep": "directory",
        "real/deep/two.txt": "two",
        "real/deep/up": "-> ../one.txt",
        "real/one.txt": "one",
        "to_file": "-> real/one.txt",
        "to_folder": "-> real/deep",
    }


def test_a_link_to_nowhere(bench: Bench) -> None:
    bench.built_twice("//:unresolved", *UNRESOLVED)
    assert os.readlink(bench.output("unresolved")) == "../not/there"


def test_a_tree_keeps_its_shape(bench: Bench) -> None:
    bench.built_twice("//:shaped_listing")
    bench.build("//:shaped")
    script = "#!/bin/sh\necho ran\n"
    files = {
        "a/b/c/d/e/f/g/deep.txt": "deep",
        "a/no_tool": script,
        "a/twin/same.txt": "same",
        "empty.txt": "",
        "tool": script,
        "twin/same.txt": "same",
        "with space.txt": "odd",
    }
    tree = bench.output("shaped")
    found = described(tree)
    assert {name: what for name, what in found.items() if what != "directory"} == files
    assert {name for name, what in found.items() if what == "directory"} == {
        str(parent) for name in files for parent in Path(name).parents if parent.name
    }
    assert subprocess.run([tree / "tool"], check=True, capture_output=True, timeout=30).stdout == b"ran\n"
    # As the next action saw it.
    listed = [line.split("  ./", 1) for line in bench.output("shaped_listing.out").read_text().splitlines()]
    assert {name: hash_ for hash_, name in listed} == {
        name: hashlib.sha256(content.encode()).hexdigest() for name, content in files.items()
    }


def test_an_empty_directory_is_an_output(bench: Bench) -> None:
    bench.built_twice("//:hollow")
    assert described(bench.bazel.bin) == {"hollow": "directory"}
