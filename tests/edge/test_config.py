"""The configuration file, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from rexec.cli import main
from rexec.config import Config, ConfigError, load, parse, with_changes


def test_an_empty_file_is_the_defaults() -> None:
    assert parse("") == Config()


def test_sections_reach_the_parts_that_they_are_named_after() -> None:
    config = parse(
        """
        state_dir = "/var/lib/rexec"
        slots = 0
        [server]
        listen = ["127.0.0.1:1", "127.0.0.1:2"]
        [store]
        max_bytes = "1.5GiB"
        [scheduler]
        max_attempts = 5
        [worker]
        slots = 3
        cache_max_bytes = 1000
        [worker.properties]
        Pool = ["big", "any"]
        """
    )
    assert config.state_path == Path("/var/lib/rexec")
    assert config.local_slots == 0
    assert config.server.listen == ("127.0.0.1:1", "127.0.0.1:2")
    assert config.store.max_bytes == 3 << 29
    assert config.scheduler.max_attempts == 5
    assert config.worker.properties == {"Pool": ["big", "any"]}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[sever]", r'^unknown key "sever"; did you mean \[server\]\?$'),
        ("[fairness.user]", r'^unknown key "fairness"; did you mean \[scheduler\.fairness\]\?$'),
        ("[server]\nlisen = []", r'^unknown key "lisen" in \[server\]; did you mean listen\?$'),
        ('listen = ["127.0.0.1:1"]', r'^unknown key "listen"; listen belongs in \[server\]$'),
        ("[server.tls]\nlissten = 1", r"in \[server\.tls\]; did you mean listen in \[server\]\?$"),
        ("[server]\nstate_dir = 1", r"in \[server\]; state_dir belongs at the top of the file"),
        ("[server.tls]\nzzz = 1", r"in \[server\.tls\]; known are certificate, key, client_ca$"),
        ("[server]\nlisten = []", r"^\[server\] listen is empty"),
        (
            '[server]\nlisten = "127.0.0.1:1"',
            r'^\[server\] listen: expected a list such as \["127\.0\.0\.1:8980"\], got a text',
        ),
        ("[server]\nlisten = [3]", r"^\[server\] listen, entry 1: expected a text in quotes, got a whole number$"),
        ("server = 3", r"^\[server\]: expected a table, got a whole number$"),
        ('[server]\nlisten = ["8980"]', "expected HOST:PORT"),
        ('[server]\nmetrics_listen = "x"', "expected HOST:PORT"),
        ("[server]\ninstance_names = []", "instance_names is empty"),
        ('[server]\nlog_level = "loud"', r"""^\[server\] log_level: 'loud' is not one of "debug", "info", "warning"""),
        ('[auth]\nanonymous = ["fly"]', r"""^\[auth\] anonymous, entry 1: 'fly' is not one of "read", """),
        ("[[auth.certificates]]", r"^\[\[auth\.certificates\]\] identity is missing"),
        ("[server]\nstop_seconds = -1", "stop_seconds is -1"),
        ("[server]\nmax_calls = 0", "max_calls is 0"),
        ("slots = -1", "slots is -1"),
        ("slots = 5000", "slots is 5000, expected 0 to 4096"),
        ("[worker]\nslots = 5000", "slots is 5000, expected at most 4096"),
        ("slots = 9\n[scheduler]\nmax_slots = 8", "slots is 9, expected at most scheduler.max_slots, 8"),
        ('slots = "two"', r"^slots: expected a whole number, got a text"),
        ('[store]\nmax_bytes = "lots"', r"^\[store\] max_bytes: .*lots"),
        ("[store]\nmax_bytes = []", r'^\[store\] max_bytes: expected a number of bytes, or a text such as "20GiB"'),
        ('[worker]\ncache_max_bytes = "5 parsecs"', r"^\[worker\] cache_max_bytes: .*parsecs"),
        ("[scheduler]\nmax_attempts = 0", r"^\[scheduler\] max_attempts is 0"),
        ("slots = ", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "absent.toml")):
        load(tmp_path / "absent.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.toml"):
        load(tmp_path / "binary.toml")


def test_the_command_line_has_the_last_word_and_silence_changes_nothing() -> None:
    config = parse("slots = 4\n[worker]\nslots = 2")
    assert with_changes(config, slots=None, worker__slots=None) == config
    changed = with_changes(config, slots=1, worker__slots=7, server__listen=("127.0.0.1:5",))
    assert (changed.slots, changed.worker.slots, changed.server.listen) == (1, 7, ("127.0.0.1:5",))
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        with_changes(config, server__listen=("nowhere",))


def test_the_state_directory_follows_the_desktop_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Config().state_path == tmp_path / "rexec"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Config().state_path == tmp_path / "home" / ".local" / "state" / "rexec"


@pytest.mark.parametrize("command", [["serve"], ["serve", "--processes", "2"], ["scheduler"], ["check-config"]])
@pytest.mark.parametrize("state_dir", ["", "~/rexec"])
def test_a_user_without_a_home_is_told_to_name_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], state_dir: str
) -> None:
    def no_home(*_: object) -> str:
        return "~"  # as os.path.expanduser answers for a user without HOME and without an entry in /etc/passwd

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", no_home)
    file = tmp_path / "rexec.toml"
    file.write_text(f'state_dir = "{state_dir}"\n[server]\nlisten = ["127.0.0.1:0"]\n')
    told = CliRunner().invoke(main, [*command, *(["--config"] if command[0] != "check-config" else []), str(file)])
    assert told.exit_code == 1
    assert "has no home directory here, expected a place named with --state-dir" in told.output
    assert isinstance(told.exception, SystemExit), "no traceback"


def test_a_byte_order_mark_is_no_part_of_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "rexec.toml"
    file.write_bytes(b"\xef\xbb\xbfslots = 3\n")
    assert load(file).slots == 3
