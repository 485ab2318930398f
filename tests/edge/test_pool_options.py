"""Options about pools of workers: --workers, [[autoscale.pools]], and what a worker is told on its command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cas.connection_settings import ConnectionSettings
from rexec import logs, worker_process
from rexec.autoscale.settings import PoolKind
from rexec.cli import main
from rexec.config import Config, ConfigError, load, parse
from rexec.listing import listing
from rexec.local_pools import LOCAL_IDLE_SECONDS, autoscaling_of
from rexec.local_workers import LocalCommand, with_what_is_here
from rexec.serve_command import greeting
from rexec.worker.settings import DEFAULT_PATH

LOCAL = '[[autoscale.pools]]\nname = "local"\nkind = "local"\nidle_seconds = 7\nmax = 3\nslots = 2\n'


def test_workers_stand_for_a_pool_of_processes() -> None:
    (pool,) = autoscaling_of(parse('workers = "0..8"')).pools
    assert (pool.name, pool.kind, pool.min, pool.max, pool.slots) == ("local", PoolKind.LOCAL, 0, 8, 1)
    assert pool.idle_seconds == LOCAL_IDLE_SECONDS


def test_the_pool_named_local_has_the_other_options_of_workers() -> None:
    (pool,) = autoscaling_of(parse(f'workers = "1..8"\n{LOCAL}')).pools
    assert (pool.min, pool.max, pool.slots, pool.idle_seconds) == (1, 8, 2, 7)
    (pool,) = autoscaling_of(parse(f'workers = "1..8"\nslots = 4\n{LOCAL}')).pools
    assert pool.slots == 4


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("slots = 3", 3),
        ('workers = "0..8"', 0),
        ('slots = 3\nworkers = "0..8"', 0),
        (LOCAL, 0),
        (f"slots = 3\n{LOCAL}", 3),
        ('slots = 3\n[[autoscale.pools]]\nname = "pods"\nimage = "x"', 3),
    ],
)
def test_pools_of_processes_take_the_place_of_the_one_worker_that_stays(text: str, slots: int) -> None:
    assert parse(text).local_slots == slots


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('workers = "8"', r"^workers is '8', expected MIN..MAX, such as '0..8'"),
        ('workers = "3..2"', r"^workers is '3..2', expected MIN..MAX with 1 to 10000 as MAX"),
        ('workers = "0..0"', "1 to 10000 as MAX"),
        ('workers = "0..99999"', "1 to 10000 as MAX"),
        ('workers = "-1..3"', "expected MIN..MAX"),
        ('workers = "0..8"\nslots = 0', "slots is 0, expected 1 or more"),
        ('workers = "0..8"\n[[autoscale.pools]]\nname = "local"', "'local' of autoscale.pools to have kind = 'local'"),
        (
            '[[autoscale.pools]]\nname = "a"\nmemory_bytes = "much"',
            r"^\[\[autoscale.pools\]\] memory_bytes: size 'much'",
        ),
        ('[[autoscale.pools]]\nname = "a"\nidle_seconds = inf', r"^\[\[autoscale.pools\]\] idle_seconds: inf"),
        ('[[autoscale.pools]]\nname = "a"\nslot = 2', "did you mean slots"),
        (
            '[[autoscale.pools]]\nname = "a"\nenvironment = {"A=B" = "c"}',
            "environment has 'A=B', expected a name without '='",
        ),
        ('[[autoscale.pools]]\nname = "a"\nenvironment = {A = "c\\u0000"}', "environment has 'A', expected .* no NUL"),
        ("[autoscale.tenants.alice]\nmax_slots = -1", "max_slots is -1"),
        (
            '[[autoscale.pools]]\nname = "a"\n[[autoscale.pools]]\nname = "b"\nmin = 5\nmax = 3',
            r"^\[\[autoscale.pools\]\] max is 3, expected at least min, 5 \(pool b\)$",
        ),
    ],
)
def test_what_is_wrong_with_pools_is_said_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse(text)


def test_sizes_of_pools_may_be_texts() -> None:
    (pool,) = parse('[[autoscale.pools]]\nname = "a"\nmemory_bytes = "2GiB"').autoscale.pools
    assert pool.memory_bytes == 2 << 30


def test_a_listing_with_pools_read_again_is_the_same(tmp_path: Path) -> None:
    config = parse(
        f'workers = "0..8"\n{LOCAL}[[autoscale.pools]]\nname = "pods"\nimage = "x"\nproperties = {{gcc = ["12"]}}\n'
        '[autoscale]\nserver = "grpc://rexec:8980"\n[autoscale.tenants.alice]\nmax_slots = 3\n'
    )
    file = tmp_path / "listed.toml"
    file.write_text(listing(config))
    assert load(file) == config
    result = CliRunner().invoke(main, ["check-config", str(file)])
    assert result.exit_code == 0
    assert "0 to 8 local workers as there is work, 2 slots each" in result.output
    assert "pool pods: 0 to 10 pods" in result.output


@pytest.mark.parametrize(("server", "said"), [("", "server is empty, "), ("http://rexec:8980", "server is 'http://")])
def test_pods_that_cannot_know_where_to_connect_are_no_good_configuration(
    server: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text(f'[autoscale]\nserver = "{server}"\n[[autoscale.pools]]\nname = "pods"\nimage = "x"\n')
    result = CliRunner().invoke(main, ["check-config", str(file)])
    assert result.exit_code == 1
    assert f"[autoscale] {said}" in result.output
    assert "expected where the workers in pods connect: grpc[s]://HOST:PORT" in result.output


def test_slots_that_stay_and_pools_of_several_sizes_are_all_named() -> None:
    text = greeting(parse(f'slots = 2\n{LOCAL}[[autoscale.pools]]\nname = "b"\nkind = "local"\n'), ("127.0.0.1:1",))
    assert "2 local slots and 0 to 13 local workers as there is work, 1 or 2 slots each" in text


def test_the_greeting_names_pools() -> None:
    text = greeting(parse('workers = "0..8"\n[[autoscale.pools]]\nname = "pods"\nimage = "x"\n'), ("127.0.0.1:1",))
    assert "0 to 8 local workers as there is work, 1 slot each" in text
    assert "pool pods: 0 to 10 pods" in text
    assert "no local worker" not in text


def test_work_can_wait_for_what_local_workers_will_find_here(tmp_path: Path) -> None:
    config = parse('workers = "0..4"\n[worker]\nannounce = ["os"]\n[worker.properties]\nlicence = ["yes"]\n')
    (pool,) = with_what_is_here(config, autoscaling_of(config), tmp_path).pools
    assert {"OSFamily", "ISA", "Arch", "os", "licence", "Isolation"} <= set(pool.properties)
    offered = config.worker.offered_resources()
    assert pool.cpu == offered["cpu"] / 1000
    assert pool.memory_bytes == offered.get("memory", 0) // 4, "they share it"


def test_work_can_wait_for_what_a_pool_of_another_path_will_find(tmp_path: Path) -> None:
    compiler = tmp_path / "bin" / "rustc"
    compiler.parent.mkdir()
    compiler.write_text("#!/bin/sh\necho 'rustc 1.2.3 (abc 2024-01-01)'\n")
    compiler.chmod(0o755)
    pools = "".join(
        f'[[autoscale.pools]]\nname = "{name}"\nkind = "local"\n{more}'
        for name, more in (("rust", f'environment = {{PATH = "{compiler.parent}"}}\n'), ("plain", ""))
    )
    config = parse(f'[worker]\nannounce = ["rustc"]\n[worker.environment]\nPATH = "/nowhere"\n{pools}')
    rust, plain = with_what_is_here(config, autoscaling_of(config), tmp_path / "pools").pools
    assert rust.properties["rustc"] == ["1.2.3"]
    assert "rustc" not in plain.properties


def test_the_command_line_of_a_local_worker(tmp_path: Path) -> None:
    config = parse(
        f'{LOCAL}properties = {{gcc = ["12", "13"]}}\ninstance_names = ["main"]\nmemory_bytes = 5000\n'
        'environment = {PATH = "/cargo/bin:/bin", A = "x=y"}\n'
    )
    settings = autoscaling_of(config)
    connection = ConnectionSettings(tls_ca="ca.pem", token_file="token")
    command = LocalCommand("grpcs://a:1", None, settings, connection)(settings.pools[0], "local-x", tmp_path / "w")
    text = " ".join(command)
    for words in (
        "--server grpcs://a:1",
        "--name local-x",
        "--slots 2",
        "--property gcc=12 --property gcc=13",
        "--instance-name main",
        "--resource memory=5000",
        "--environment PATH=/cargo/bin:/bin --environment A=x=y",
        f"--cache-dir {tmp_path / 'w' / 'cache'}",
        "--tls-ca ca.pem",
        "--token-file token",
        "--parent-pid",
    ):
        assert words in text
    command = LocalCommand("unix:/socket", None, settings, connection)(settings.pools[0], "local-x", tmp_path / "w")
    assert "--token-file" not in command


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that workers would have worked with."""
    found: list[Config] = []

    async def work(_server: str, config: Config) -> None:
        found.append(config)

    monkeypatch.setattr(worker_process, "work", work)
    monkeypatch.setattr(logs, "configure", lambda _settings: None)  # it would be for all tests that follow
    return found


def told(worked: list[Config], *options: str, **variables: str) -> Any:
    result = CliRunner().invoke(main, ["worker", "--server", "grpc://a:1", *options], env=variables)
    assert result.exit_code == 0, result.output
    return worked[-1].worker


def test_properties_of_the_command_line_join_those_of_the_file(tmp_path: Path, worked: list[Config]) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text('[worker.properties]\na = ["1"]\nb = ["2"]\n[worker.resources]\ngpu = 1\n')
    options = ["--config", str(file), "--property", "b=3", "--property", "b=x=y", "--property", "c="]
    worker = told(worked, *options, "--resource", "memory=1000")
    assert worker.properties == {"a": ["1"], "b": ["3", "x=y"], "c": [""]}
    assert worker.resources == {"gpu": 1, "memory": 1000}


def test_variables_of_the_command_line_join_those_of_the_file(tmp_path: Path, worked: list[Config]) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text('[worker.environment]\nPATH = "/bin"\nLANG = "C"\n')
    options = ["--config", str(file), "--environment", "PATH=/cargo/bin:/bin", "--environment", "A=x=y"]
    assert told(worked, *options).environment == {"PATH": "/cargo/bin:/bin", "LANG": "C", "A": "x=y"}
    assert told(worked, "--environment", "EMPTY=").environment == {"PATH": DEFAULT_PATH, "EMPTY": ""}


def test_the_name_of_a_worker_can_come_from_the_environment(worked: list[Config]) -> None:
    assert told(worked, REXEC_WORKER_NAME="pod-1").name == "pod-1"
    assert told(worked, "--name", "mine", REXEC_WORKER_NAME="pod-1").name == "mine"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--property", "gcc"], "--property: 'gcc', expected NAME=VALUE"),
        (["--property", "=12"], "--property: '=12', expected NAME=VALUE"),
        (["--environment", "PATH"], "--environment: 'PATH', expected NAME=VALUE"),
        (["--resource", "memory=2GiB"], "--resource: memory=2GiB, expected a whole number"),
        (["--resource", "gpu=-1"], "--resource: gpu=-1, expected a whole number"),
    ],
)
def test_a_wrong_pair_is_explained(options: list[str], complaint: str) -> None:
    result = CliRunner().invoke(main, ["worker", "--server", "grpc://a:1", *options])
    assert result.exit_code == 2
    assert complaint in result.output


def test_an_autoscaler_without_pools_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rexec.toml"
    file.write_text("")
    result = CliRunner().invoke(main, ["autoscale", "--server", "grpc://a:1", "--config", str(file)])
    assert result.exit_code == 2
    assert "has no pools, expected [[autoscale.pools]]" in result.output
