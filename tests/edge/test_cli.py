"""The command line, as far as it goes without starting a server."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rexec.cli import main
from rexec.config import Config, load, parse
from rexec.options import sections
from rexec.serve_command import greeting


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ([], ["serve", "worker", "check-config", "Check a configuration FILE. ", "Print every option, explained."]),
        (["serve"], ["--listen", "--state-dir", "--slots", "--config", "127.0.0.1:8980", "one for each core"]),
        (["worker"], ["--server", "--slots", "--cache-dir"]),
        (["scheduler"], ["--listen", "--state-dir", "--config", "127.0.0.1:8981", "--metrics-listen"]),
        (["frontend"], ["--scheduler ADDR[,ADDR]", "--listen", "127.0.0.1:8980", "--token-file", "--tls-ca", "--name"]),
        (["logs"], ["OPERATION", "--server", "--follow", "--stdout", "--stderr", "--instance"]),
        (["check-config"], ["FILE"]),
    ],
)
def test_help_names_every_option_and_its_default(command: list[str], mentions: list[str]) -> None:
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    for text in mentions:
        assert text in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("given", "asked"), [(None, "grpc://127.0.0.1:8980"), ("grpc://127.0.0.1:1", "grpc://127.0.0.1:1")]
)
def test_logs_asks_the_server_that_ps_asks(monkeypatch: pytest.MonkeyPatch, given: str | None, asked: str) -> None:
    servers = []

    async def show(server: str, *_: object) -> bool:
        servers.append(server)
        return True

    monkeypatch.setattr("rexec.logs_command.show_logs", show)
    result = CliRunner().invoke(main, ["logs", "some/operation"], env={"REXEC_SERVER": given})
    assert result.exit_code == 0, result.output
    assert servers == [asked]


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
        assert "in [store]; did you mean max_bytes?" in result.output
        assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["serve", "--listen", "8980"], "--listen: '8980' is not an address, expected HOST:PORT"),
        (["frontend"], "no scheduler is named: give --scheduler"),
        (["frontend", "--scheduler", "http://x:1"], "--scheduler: 'http://x:1' has a scheme that is not known here"),
        (["serve", "--slots", "5000"], "--slots: slots is 5000, expected 0 to 4096"),
        (["worker", "--server", "127.0.0.1:1", "--tls-key", "k"], "expected both tls_certificate and tls_key"),
        (["serve", "--slots", "-1"], "--slots"),
        (["serve", "--config", "/does/not/exist"], "does not exist"),
        (["worker"], "--server"),
        (["worker", "--server", "ftp://x:1"], "expected grpc://HOST:PORT"),
        (["worker", "--server", "127.0.0.1:1", "--slots", "0"], "--slots"),
        (["worker", "--server", "127.0.0.1:1", "--scheduler", "a:1,b"], "--scheduler"),
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


def test_a_configuration_that_lets_everybody_in_is_good_but_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text('[server]\nlisten = ["0.0.0.0:8980"]\n')
    result = CliRunner().invoke(main, ["check-config", str(file)])
    assert result.exit_code == 0
    assert "warning: other machines reach this port, and whoever does may run commands here" in result.output


def test_every_option_is_listed_with_its_value_and_meaning(tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["config"]).output
    assert parse(listed) == Config()
    names = {option.name for section in sections(Config) for option in section.options}
    lines = listed.splitlines()
    assert names == {name for name in names if any(line.removeprefix("# ").startswith(f"{name} =") for line in lines)}
    file = tmp_path / "rexec.toml"
    file.write_text(
        'slots = 3\nstate_dir = "/\\u007f \\" x"\n[worker.properties]\n"a b" = ["1", "2"]\n[store]\nmax_bytes = "5GiB"\n'
        '[[auth.certificates]]\nidentity = "a"\ncommon_name = "c"\nrights = ["execute"]\n'
        '[[auth.certificates]]\nidentity = "b"\ncommon_name = "d"\n'
        '[auth.jwt]\nissuer = "i"\naudience = ["x"]\njwks_file = "k"\n'
        "[scheduler.fairness.user]\nmax_running = 9\n"
        '[scheduler.fairness.tenants.red]\nweight = 3.0\n[scheduler.fairness.tenants."a b"]\nmax_queued = 5\n'
        '[server.tls]\ncertificate = "c"\nkey = "k"\nclient_ca = "a"\n'
    )
    assert parse(CliRunner().invoke(main, ["config", str(file)]).output) == load(file)


def test_no_option_is_without_an_explanation() -> None:
    bare = [f"{section.heading} {option.name}" for section in sections(Config) for option in section.options
            if not option.text]  # fmt: skip
    assert bare == []
