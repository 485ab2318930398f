"""Under which names the scheduler learns."""

from __future__ import annotations

import pytest

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.likeness import class_of, key_of
from rexec.scheduler.platform import Requirement

LINUX = Requirement("main", frozenset({("OSFamily", "linux")}))
ARM = Requirement("main", frozenset({("OSFamily", "linux"), ("ISA", "arm64")}))


def command(*arguments: str, outputs: tuple[str, ...] = (), working_directory: str = "") -> re_pb2.Command:
    return re_pb2.Command(
        arguments=arguments or ("/usr/bin/gcc",), output_paths=outputs, working_directory=working_directory
    )


def said(mnemonic: str = "", target: str = "") -> re_pb2.RequestMetadata:
    return re_pb2.RequestMetadata(action_mnemonic=mnemonic, target_id=target)


def test_the_mnemonic_names_the_class() -> None:
    one = class_of(LINUX, command("/usr/bin/gcc", "-c", "a.c"), said("CppCompile"))
    assert one.startswith("CppCompile/")
    assert one == class_of(LINUX, command("clang", "-c", "b.c"), said("CppCompile"))
    assert one != class_of(LINUX, command("/usr/bin/gcc"), said("CppLink"))


def test_without_a_mnemonic_the_program_does() -> None:
    assert class_of(LINUX, command("/usr/bin/gcc"), said()).startswith("gcc/")
    assert class_of(LINUX, command("gcc"), said()) == class_of(LINUX, command("/opt/bin/gcc"), said())


def test_another_platform_is_another_class() -> None:
    assert class_of(LINUX, command(), said()) != class_of(ARM, command(), said())
    assert class_of(LINUX, command(), said()) != class_of(Requirement("other", LINUX.pairs), command(), said())


@pytest.mark.parametrize("name", ["x" * 100_000, "a/b", "line\nbreak", "/", "\U0001f600" * 100])
def test_names_are_short_and_fit_to_be_shown_whatever_clients_send(name: str) -> None:
    for shown in (class_of(LINUX, command(name), said()), class_of(LINUX, command(), said(name))):
        assert len(shown) <= 50
        assert shown.isprintable()
        assert shown.count("/") == 1


def test_a_step_is_known_by_its_target_and_its_first_output() -> None:
    key = key_of("class", command(outputs=("a.o", "a.d")), said(target="//:a"))
    assert key == key_of("class", command("other", outputs=("a.o",)), said(target="//:a"))
    others = {
        key_of("class", command(outputs=("b.o",)), said(target="//:a")),
        key_of("class", command(outputs=("a.o",)), said(target="//:b")),
        key_of("class", command(outputs=("a.o",), working_directory="sub"), said(target="//:a")),
        key_of("another", command(outputs=("a.o",)), said(target="//:a")),
    }
    assert key not in others
    assert len(others) == 4
    assert len(key) == 32


def test_what_has_neither_target_nor_output_is_no_step_of_anything() -> None:
    assert key_of("class", command(), said()) == ""
    assert key_of("class", command(), said(target="//:a"))
