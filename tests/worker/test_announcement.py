"""What a worker finds out about its machine, and how little a program can do to it by what it prints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from cas.memory import MemoryStore
from rexec.worker import announcement, toolchain
from rexec.worker.announcement import FACTS, MAX_VALUES, announced, operating_system
from rexec.worker.libc import libc
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import open_agent
from rexec.worker.toolchain import version_in
from tests.worker.scheduler import Scheduler


class Machine:
    """A PATH with programs on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.memory = folder / "programs.json"
        self.path = ":".join(f"{folder}/{name}" for name in ("bin", "other"))

    def program(self, name: str, script: str, folder: str = "bin") -> Path:
        """A shell script on the PATH."""
        path = self.folder / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def found(self, *names: str, environment: Mapping[str, str] | None = None) -> dict[str, list[str]]:
        return announced(names, {"PATH": self.path, **(environment or {})}, self.memory)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0\nCopyright (C) 2022", "12.2.0"),
        ("GNU ld (GNU Binutils for Debian) 2.40", "2.40"),
        ("Debian clang version 14.0.6\nTarget: x86_64", "14.0.6"),
        ("clang version 17.0.6 (https://host/llvm 6009708b4367)", "17.0.6"),
        ("rustc 1.79.0 (129f3b996 2024-06-10)", "1.79.0"),
        ("rustc 1.81.0-nightly (ab 2024-06-20)", "1.81.0"),
        ("LLD 14.0.6 (compatible with GNU linkers)", "14.0.6"),
        ("nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 12.2, V12.2.140", "12.2"),
        ("tool (version 3.1)", "3.1"),
        ("no version at all", ""),
        ("\x1b[31m\x00\ufffd 7.1\x1b]0;title\x07", "7.1"),
        ("9" * 4000 + "." + "9" * 90, ""),
        ("", ""),
    ],
)
def test_the_version_is_found_in_what_compilers_say(said: str, version: str) -> None:
    assert version_in(said) == version


def test_a_compiler_is_offered_with_version_and_digest(machine: Machine) -> None:
    compiler = machine.program("gcc", "echo 'gcc (Distribution 9.9) 12.2.0'")
    assert machine.found("gcc", "clang") == {"gcc": ["12.2.0"], "gcc-digest": [sha256(compiler)]}


def test_several_versions_are_offered_the_one_of_the_plain_name_first(machine: Machine) -> None:
    machine.program("gcc-9", "echo 9.5.0")
    old = machine.program("gcc-11", "echo 11.4.0")
    (machine.folder / "bin" / "gcc").symlink_to("gcc-11")
    machine.program("gcc-ar-12", "echo 2.40")
    new = machine.program("gcc", "echo 13.1.0", folder="other")
    found = machine.found("gcc")
    assert found["gcc"] == ["11.4.0", "13.1.0", "9.5.0"]
    assert found["gcc-digest"][:2] == [sha256(old), sha256(new)]


@pytest.mark.parametrize(
    "script",
    ["exit 1", "echo 12.2.0; exit 1", "echo nothing", "exec /usr/bin/yes 1.2", "/bin/sleep 600 & echo 1.2; wait", "kill -9 $$",
     "exec /bin/sleep 600 >/dev/null", "echo 1.2; exec /bin/sleep 600"],
)  # fmt: skip
def test_a_program_that_does_not_say_its_version_is_not_offered(
    machine: Machine, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toolchain, "ANSWER_SECONDS", 0.3)
    machine.program("gcc", script)
    assert machine.found("gcc") == {}


def test_what_is_no_program_is_passed_over(machine: Machine) -> None:
    (machine.folder / "bin" / "gcc").mkdir(parents=True)
    machine.program("g++", "echo 1.2").chmod(0o644)
    os.mkfifo(machine.folder / "bin" / "clang")
    (machine.folder / "bin" / "ld").symlink_to("ld")
    (machine.folder / "bin" / "rustc").write_bytes(b"\x7fELF")
    (machine.folder / "bin" / "rustc").chmod(0o755)
    assert machine.found("gcc", "g++", "clang", "ld", "rustc") == {}


def test_programs_see_the_environment_of_the_actions_and_no_other(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1.2")
    machine.program("gcc", 'echo "$SECRET$GIVEN"')
    assert machine.found("gcc", environment={"GIVEN": "3.4"})["gcc"] == ["3.4"]


def test_all_together_have_so_much_time(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "ALL_SECONDS", 0.0)
    machine.program("gcc", "echo 1.2")
    assert machine.found("gcc") == {}


def test_a_file_is_hashed_again_only_when_it_is_another_one(machine: Machine) -> None:
    compiler = machine.program("gcc", "echo 1.2")
    first = machine.found("gcc")
    known = msgspec.json.decode(machine.memory.read_bytes())
    known[str(compiler)]["digest"] = "remembered"
    machine.memory.write_bytes(msgspec.json.encode(known))
    assert machine.found("gcc") == {**first, "gcc-digest": ["remembered"]}
    machine.program("gcc", "echo 1.2.1")
    assert machine.found("gcc") == {"gcc": ["1.2.1"], "gcc-digest": [sha256(compiler)]}


@pytest.mark.parametrize("memory", [b"", b"{", b"[]", b'{"x": 1}', b"\xff"])
def test_a_memory_that_cannot_be_read_is_made_anew(machine: Machine, memory: bytes) -> None:
    compiler = machine.program("gcc", "echo 1.2")
    machine.memory.write_bytes(memory)
    assert machine.found("gcc")["gcc-digest"] == [sha256(compiler)]
    assert list(msgspec.json.decode(machine.memory.read_bytes())) == [str(compiler)]


def test_there_are_never_more_properties_than_displays_show(machine: Machine) -> None:
    names = [f"tool{number}" for number in range(20)]
    for name in names:
        machine.program(name, "echo 1.2")
        machine.program(f"{name}-3", "echo 3.4")
    found = machine.found(*names, *FACTS)
    assert sum(map(len, found.values())) <= MAX_VALUES
    assert found.keys() >= {"os", "cores", "tool0"}
    assert all(len(values) == 1 for values in found.values()), "the plain names come first"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('ID=debian\nVERSION_ID="12"\nNAME="Debian"', "debian-12"),
        ("ID=arch\n", "arch"),
        ("VERSION_ID=1\x1b[0m;rm -rf\nID='x y'", "xy-10mrm-rf"),
        ("ID=" + "x" * 1000, "x" * 50),
        ("\x00\xff", ""),
    ],
)
def test_the_operating_system_is_named_in_plain_words(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text(text)
    assert operating_system(str(tmp_path)) == said


def test_a_machine_without_os_release_has_no_name(tmp_path: Path) -> None:
    assert operating_system(str(tmp_path)) == ""


def test_this_machine_has_a_libc_and_cores(machine: Machine) -> None:
    found = machine.found(*FACTS)
    assert found["libc"] == [libc()]
    assert libc().startswith("glibc-2.")
    assert int(found["cores"][0]) >= 1
    assert int(found["memory-gib"][0]) >= 0
    assert machine.found() == {}


@pytest.mark.parametrize("names", [["../gcc"], ["/bin/gcc"], [""], ["a b"], [f"p{n}" for n in range(21)]])
def test_names_that_are_none_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="announce"):
        WorkerSettings(announce=tuple(names))


async def test_a_worker_offers_what_was_found_and_configuration_has_the_last_word(machine: Machine) -> None:
    machine.program("gcc", "echo 1.2")
    machine.program("nvcc", "echo 9.1")
    settings = WorkerSettings(
        slots=1,
        work_dir=str(machine.folder / "work"),
        environment={"PATH": machine.path},
        announce=("gcc", "nvcc", "os"),
        properties={"gcc": ["13.0.0", "12.0.0"], "os": [], "pool": ["a"]},
    )
    async with open_agent(settings, Scheduler().dial, lambda _instance: MemoryStore()) as agent:
        offered = [(each.name, each.value) for each in agent.hello().hello.properties]
    assert [value for name, value in offered if name == "gcc"] == ["12.0.0", "13.0.0"]
    assert {("nvcc", "9.1"), ("pool", "a")} <= set(offered)
    assert {name for name, _ in offered} >= {"OSFamily", "ISA", "nvcc-digest"}
    assert not {name for name, _ in offered} & {"os", "cores", "libc"}


def test_the_default_is_what_is_documented() -> None:
    assert WorkerSettings().announce == announcement.DEFAULT
