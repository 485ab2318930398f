"""Tokens that a file lists."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from rexec.auth.credentials import AuthUnusable, Refused
from rexec.auth.tokens import Tokens, identity_in, parse
from rexec.auth.watched_file import LOOK_SECONDS, WatchedFile


def entry(token: str, identity: str = "alice", rights: str = '["read"]', more: str = "") -> str:
    sha256 = hashlib.sha256(token.encode()).hexdigest()
    return f'[[token]]\nidentity = "{identity}"\nsha256 = "{sha256}"\nrights = {rights}\n{more}\n'


def test_a_token_gives_its_identity_rights_and_instances() -> None:
    text = entry("one") + entry("two", "bob", '["work", "execute"]', 'instances = ["main", ""]')
    known = parse(text.encode())
    alice, bob = identity_in(known, "one"), identity_in(known, "two")
    assert alice is not None
    assert (alice.name, alice.may_read, alice.may_execute, alice.instance_names) == ("alice", True, False, None)
    assert bob is not None
    assert (bob.may_read, bob.may_execute, bob.may_work, bob.may_update_action_cache) == (True, True, True, False)
    assert bob.instance_names == frozenset({"main", ""})


def test_a_token_may_belong_to_a_tenant() -> None:
    known = parse((entry("one") + entry("two", "bob", more='tenant = "red"')).encode())
    assert [getattr(identity_in(known, token), "tenant", None) for token in ("one", "two")] == ["", "red"]


@pytest.mark.parametrize(
    "token", ["", "ONE", "one ", "on", "one\x00", "\x00", "x" * (1 << 20), hashlib.sha256(b"one").hexdigest()]
)
def test_any_other_token_is_nobodys(token: str) -> None:
    assert identity_in(parse(entry("one").encode()), token) is None


def test_a_token_beyond_ascii_is_refused_without_repeating_it() -> None:
    with pytest.raises(Refused) as refused:
        identity_in(parse(entry("one").encode()), "önë")
    assert "ö" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[token]]", "missing required field"),
        ("token = 5", "token"),
        (entry("one", rights='["fly"]'), "fly"),
        (entry("one", more="admin = true"), "admin"),
        (entry("one", more='instances = "main"'), "instances"),
        (entry("one") + entry("one", "bob"), "'alice' and 'bob' have the same token"),
        ("[[token", "not a file of tokens"),
        ("\x00", "not a file of tokens"),
    ],
)
def test_a_file_that_is_wrong_is_explained(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(text.encode())


@pytest.mark.parametrize("secret", ["hunter2", "z" * 64, "a" * 63, "é" * 64])
def test_a_token_in_the_place_of_its_hash_is_not_repeated(secret: str) -> None:
    text = f'[[token]]\nidentity = "alice"\nsha256 = "{secret}"\nrights = ["read"]'
    with pytest.raises(ValueError, match="sha256 of 'alice' is not 64 hexadecimal digits") as refused:
        parse(text.encode())
    assert secret not in str(refused.value)


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuthUnusable, match=str(tmp_path / "tokens.toml")):
        Tokens(tmp_path / "tokens.toml")
    (tmp_path / "tokens.toml").write_bytes(b"\xff")
    with pytest.raises(AuthUnusable, match=str(tmp_path / "tokens.toml")):
        Tokens(tmp_path / "tokens.toml")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def replace(path: Path, data: bytes) -> None:
    """As careful editors do it, and as Kubernetes does."""
    path.with_suffix(".new").write_bytes(data)
    os.replace(path.with_suffix(".new"), path)


def test_a_changed_file_counts_within_the_time_between_two_looks(tmp_path: Path) -> None:
    path, clock = tmp_path / "tokens.toml", Clock()
    path.write_text(entry("old"))
    file = WatchedFile(path, parse, clock)
    first = file.value()
    assert file.value() is first
    replace(path, entry("new", "bob").encode())
    assert file.value() is first
    clock.now += LOOK_SECONDS
    assert identity_in(file.value(), "old") is None
    changed = identity_in(file.value(), "new")
    assert changed is not None
    assert changed.name == "bob"


@pytest.mark.parametrize("data", [b"[[tok", None])
def test_a_change_that_is_wrong_leaves_what_was_there_and_is_complained_of_once(
    tmp_path: Path, data: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, clock = tmp_path / "tokens.toml", Clock()
    path.write_text(entry("one"))
    file = WatchedFile(path, parse, clock)
    if data is None:
        path.unlink()
    else:
        replace(path, data)
    for _ in range(3):
        clock.now += LOOK_SECONDS
        assert identity_in(file.value(), "one") is not None
    assert "".join(capsys.readouterr()).count("changed file not used") == 1
    replace(path, entry("two").encode())
    clock.now += LOOK_SECONDS
    assert identity_in(file.value(), "one") is None


def test_a_file_without_end_is_not_read_whole() -> None:
    with pytest.raises(ValueError, match="larger than"):
        WatchedFile(Path("/dev/zero"), parse)
