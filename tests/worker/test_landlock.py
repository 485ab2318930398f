"""What a ruleset says to kernels of each version; how it is applied is in test_landlock_isolation."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from rexec.worker.landlock import (
    DEVICE,
    GAPS,
    OWN,
    READ,
    FileAccess,
    NetAccess,
    Rule,
    Scope,
    handled_by,
    packed,
    ruleset_attribute,
    without_those_below,
)

ALL_NET = NetAccess.BIND_TCP | NetAccess.CONNECT_TCP
ALL_SCOPES = Scope.ABSTRACT_UNIX_SOCKET | Scope.SIGNAL


@pytest.mark.parametrize(
    ("abi", "files", "net", "scope"),
    [
        (1, (1 << 13) - 1, 0, 0),
        (2, (1 << 14) - 1, 0, 0),
        (3, (1 << 15) - 1, 0, 0),
        (4, (1 << 15) - 1, ALL_NET, 0),
        (5, (1 << 16) - 1, ALL_NET, 0),
        (6, (1 << 16) - 1, ALL_NET, ALL_SCOPES),
        (7, (1 << 16) - 1, ALL_NET, ALL_SCOPES),
        (99, (1 << 16) - 1, ALL_NET, ALL_SCOPES),
    ],
)
def test_all_that_a_version_can_deny_is_denied_and_nothing_that_it_does_not_know(
    abi: int, files: int, net: int, scope: int
) -> None:
    handled = handled_by(abi)
    assert (handled.files, handled.net, handled.scope) == (files, net, scope)


def test_tcp_and_reads_can_be_left_alone_while_writes_stay_denied() -> None:
    handled = handled_by(7, tcp=False, reads=False)
    assert handled.net == 0
    assert handled.scope == ALL_SCOPES
    assert not handled.files & READ
    assert handled.files | READ == (1 << 16) - 1


@pytest.mark.parametrize(("abi", "length"), [(1, 8), (2, 8), (3, 8), (4, 16), (5, 16), (6, 24), (7, 24)])
def test_a_kernel_is_given_no_more_fields_than_it_knows(abi: int, length: int) -> None:
    handled = handled_by(abi)
    attribute = ruleset_attribute(handled, abi)
    assert len(attribute) == length
    assert struct.unpack(f"={length // 8}Q", attribute) == (handled.files, handled.net, handled.scope)[: length // 8]


def test_rules_ask_for_nothing_that_is_not_handled_and_those_left_with_nothing_are_dropped() -> None:
    rules = [Rule("/own", OWN), Rule("/usr", READ), Rule("/dev/null", DEVICE)]
    old = dict(packed(rules, handled_by(1)))
    assert old[b"/own"] == OWN & ~(FileAccess.REFER | FileAccess.TRUNCATE)
    assert old[b"/dev/null"] == FileAccess.READ_FILE | FileAccess.WRITE_FILE
    assert b"/usr" not in dict(packed(rules, handled_by(7, reads=False)))
    assert packed([Rule("/\udcff", READ)], handled_by(1)) == [(b"/\xff", READ)]


def test_an_action_makes_no_device_and_talks_to_none_that_it_has_made() -> None:
    assert not OWN & (FileAccess.MAKE_CHAR | FileAccess.MAKE_BLOCK | FileAccess.IOCTL_DEV)


def test_a_rule_below_one_that_allows_as_much_is_left_out_and_one_that_allows_more_is_kept() -> None:
    usr, lib, user, more = (
        Rule("/usr", READ),
        Rule("/usr/lib", READ),
        Rule("/usr2", READ),
        Rule("/usr/own", OWN),
    )
    assert without_those_below([lib, more, user, usr, usr]) == [usr, more, user]
    assert without_those_below([usr, Rule("/", READ)]) == [Rule("/", READ)]


def test_what_is_no_directory_gets_only_what_files_have(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert Rule(str(file), OWN).for_what_it_is().access == READ & ~FileAccess.READ_DIR | (
        FileAccess.WRITE_FILE | FileAccess.TRUNCATE
    )
    assert Rule(str(tmp_path), OWN).for_what_it_is().access == OWN


def test_each_version_that_adds_something_is_said_to_be_missed_by_those_before() -> None:
    assert [since for since, _ in GAPS] == [2, 3, 4, 5, 6]
