"""The command line, as far as it goes without starting a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rexec.cli import greeting, main
from rexec.config import parse


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ([], ["serve", "worker", "check-config"]),
        (["serve"], ["--listen", "--state-dir", "--slots", "--config", "127.0.0.1:8980", "one for each core"]),
        (["worker"], ["--server", "--slots", "--cache-dir"]),
        (["logs"], ["OPERATION", "--server", "--follow", "--stdout", "--stderr", "--instance"]),
        (["check-config"], ["FILE"]),
    ],
)
def test_help_names_every_option_and_its_default(command: list[str], mentions: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    for text in mentions:
        assert text in " ".join(result.output.split())


def test_a_good_configuration_is_called_good(tmp_path: Path) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text('slots = 3\n[server]\nlisten = ["127.0.0.1:7000"]\n')
    result = CliRunner().invoke(main, ["check-config", str(file)])
    assert result.exit_code == 0
    assert "good" in result.output
    assert "127.0.0.1:7000" in result.output
    assert "3 local slots" in result.output


def test_a_bad_configuration_is_named_with_file_and_place(tmp_path: Path) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text("[store]\nmax_bites = 5\n")
    for command in (["check-config", str(file)], ["serve", "--config", str(file)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 1
        assert str(file) in result.output
        assert "max_bites" in result.output
        assert "$.store" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["serve", "--listen", "8980"], "expected HOST:PORT"),
        (["serve", "--slots", "-1"], "--slots"),
        (["serve", "--config", "/does/not/exist"], "does not exist"),
        (["worker"], "--server"),
        (["worker", "--server", "ftp://x:1"], "expected grpc://HOST:PORT"),
        (["worker", "--server", "127.0.0.1:1", "--slots", "0"], "--slots"),
    ],
)
def test_a_wrong_option_is_explained_without_a_traceback(command: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, command)
    assert result.exit_code in (1, 2)
    assert complaint in result.output
    assert "Traceback" not in result.output


def test_the_greeting_names_address_slots_and_data() -> None:
    text = greeting(parse('state_dir = "/data"\nslots = 1'), ("127.0.0.1:8980",))
    assert "serves on 127.0.0.1:8980" in text
    assert "1 local slot;" in text
    assert "/data" in text
    assert "warning" not in text


def test_the_greeting_warns_of_a_port_that_others_reach() -> None:
    assert "warning" in greeting(parse(""), ("0.0.0.0:8980",))


def test_the_greeting_without_local_slots_says_how_to_start_a_worker() -> None:
    assert "rexec worker --server grpc://127.0.0.1:8980" in greeting(parse("slots = 0"), ("127.0.0.1:8980",))
