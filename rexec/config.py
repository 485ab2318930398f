"""The configuration: one TOML file becomes frozen values, and nothing else in the program reads it.

Each section is the settings struct of the part that it configures, defined beside that part with its defaults. Unknown
keys are refused with their place. A key that ends in `_bytes` may be a number or a text such as "20GiB".
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from cas.assets_config import AssetSettings
from cas.config import StoreSettings, parse_bytes
from cas.connection_settings import ConnectionSettings
from rexec.address import channel_target, host_and_port
from rexec.auth.settings import AuthSettings
from rexec.autoscale.settings import LARGEST_POOL, AutoscaleSettings, PoolKind
from rexec.complaint import complaint
from rexec.frontend_settings import FrontendSettings
from rexec.scheduler.settings import SchedulerSettings
from rexec.tls_settings import TlsSettings
from rexec.worker.settings import MAX_SLOTS, WorkerSettings

MAX_PROCESSES = 256
"""More than any machine has use for; each takes some 60 MB."""

LOCAL_POOL: Final = "local"
"""The pool that `workers` is about; [[autoscale.pools]] of that name and kind has its other options."""

_RANGE: Final = re.compile(r"([0-9]{1,6})\.\.([0-9]{1,6})")


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file, the key and what was expected."""


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[server]: where the server listens and whom it serves."""

    listen: tuple[str, ...] = ("127.0.0.1:8980",)
    """HOST:PORT of the gRPC services. Only this machine reaches the default. Before others may: [server.tls] and [auth], for
    without them who reaches the port may run any command here."""
    metrics_listen: str = ""
    """HOST:PORT of the HTTP port: Prometheus metrics (/metrics) and probes (/healthz, /readyz). Empty: none."""
    instance_names: tuple[str, ...] = ("", "main")
    """The instance names that clients may use. They share blobs; each has its own action results."""
    share_port: bool = False
    """Let several servers listen on the same port (SO_REUSEPORT). Off: a second server on the port fails at once."""
    stop_seconds: float = 5.0
    """How long calls under way may go on after SIGTERM."""
    max_calls: int = 50_000
    """Calls under way at once, waiting Execute streams included; one more is refused with RESOURCE_EXHAUSTED."""
    tls: TlsSettings = TlsSettings()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged to standard error."""
    log_format: Literal["auto", "text", "json"] = "auto"
    """How: for people, or one JSON object a line. auto: text on a terminal, else JSON."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        for address in (*self.listen, *([self.metrics_listen] if self.metrics_listen else [])):
            host_and_port(address)
        if not self.listen:
            raise ValueError("listen is empty, expected at least one HOST:PORT")
        if not self.instance_names:
            raise ValueError('instance_names is empty, expected at least one name ("" is the default instance)')
        if self.stop_seconds < 0:
            raise ValueError(f"stop_seconds is {self.stop_seconds}, expected 0 or more")
        if self.max_calls < 1:
            raise ValueError(f"max_calls is {self.max_calls}, expected 1 or more")


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be configured."""

    state_dir: str = ""
    """Where blobs, action results and the local worker's files live. Empty: $XDG_STATE_HOME/rexec, else
    ~/.local/state/rexec."""
    slots: int | None = None
    """Actions that the local worker of `rexec serve` runs at once. 0: no local worker. Unset: [worker] slots. With `workers`: of
    each of them, unset 1."""
    workers: str = ""
    """"MIN..MAX", such as "0..8": `rexec serve` starts and ends so many worker processes on this machine as there is work for.
    Empty: one worker that is always there, and has all slots."""
    processes: int = 1
    """Processes of `rexec serve` that answer clients, behind one port. 1: one process does everything but run actions. More:
    one keeps the queue and the store, and so many beside it use the other cores."""
    server: ServerSettings = ServerSettings()
    auth: AuthSettings = AuthSettings()
    connection: ConnectionSettings = ConnectionSettings()
    store: StoreSettings = StoreSettings()
    assets: AssetSettings = AssetSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    frontend: FrontendSettings = FrontendSettings()
    worker: WorkerSettings = msgspec.field(default_factory=WorkerSettings)
    autoscale: AutoscaleSettings = AutoscaleSettings()

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        if self.slots is not None and not 0 <= self.slots <= MAX_SLOTS:
            raise ValueError(f"slots is {self.slots}, expected 0 to {MAX_SLOTS}")
        if not 1 <= self.processes <= MAX_PROCESSES:
            raise ValueError(f"processes is {self.processes}, expected 1 to {MAX_PROCESSES}")
        if self.workers:
            least, most = self.worker_range
            if not (0 <= least <= most and 1 <= most <= LARGEST_POOL):
                raise ValueError(f"workers is {self.workers!r}, expected MIN..MAX with 1 to {LARGEST_POOL} as MAX")
            if self.slots == 0:
                raise ValueError("slots is 0, expected 1 or more: it is what each of the `workers` runs at once")
            other = next((pool for pool in self.autoscale.pools if pool.name == LOCAL_POOL), None)
            if other is not None and other.kind is not PoolKind.LOCAL:
                raise ValueError("workers is set, expected the pool 'local' of autoscale.pools to have kind = 'local'")
        if self.local_slots > self.scheduler.max_slots:
            raise ValueError(
                f"slots is {self.local_slots}, expected at most scheduler.max_slots, {self.scheduler.max_slots}"
            )
        address = [self.store.address] if self.store.address else []
        for server in (*self.frontend.schedulers, *address, *self.store.shards):
            channel_target(server)
        if self.auth.certificates and not self.server.tls.client_ca:
            raise ValueError("auth.certificates is set, expected server.tls.client_ca as well")

    @property
    def local_slots(self) -> int:
        """Actions that the one local worker of `rexec serve` runs at once; 0 if there is none, or pools of them instead."""
        if self.workers or (self.slots is None and any(pool.kind is PoolKind.LOCAL for pool in self.autoscale.pools)):
            return 0
        return self.worker.slots if self.slots is None else self.slots

    @property
    def worker_range(self) -> tuple[int, int]:
        """The least and the most of `workers`. Raises ValueError."""
        found = _RANGE.fullmatch(self.workers)
        if found is None:
            raise ValueError(f"workers is {self.workers[:80]!r}, expected MIN..MAX, such as '0..8'")
        return int(found[1]), int(found[2])

    @property
    def state_path(self) -> Path:
        """The state directory, absolute. Raises ConfigError if it is in the home of a user who has none."""
        try:
            if self.state_dir:
                return Path(self.state_dir).expanduser().absolute()
            return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state").absolute() / "rexec"
        except RuntimeError as error:  # the user has no entry in /etc/passwd, and HOME is not set
            raise ConfigError(
                f"user {os.getuid()} has no home directory here, expected a place named with --state-dir, or state_dir"
            ) from error


def load(path: Path | None) -> Config:
    """The configuration in the file, the defaults without one. Raises ConfigError."""
    if path is None:
        return Config()
    try:
        text = path.read_text("utf-8-sig")  # editors of another system put a byte order mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def parse(text: str) -> Config:
    """The configuration in the TOML text. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
        return from_table(table)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"is not TOML: {error}") from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits, which tomllib lets Python refuse
        raise ConfigError(f"holds a value that cannot be used: {error}") from error


def from_table(table: dict[str, Any]) -> Config:
    """The configuration in a table as TOML gives it. Raises ConfigError with the place of what is wrong."""
    try:
        return msgspec.convert(_sized(table, "$"), Config)
    except msgspec.ValidationError as error:
        raise ConfigError(complaint(str(error), Config)) from error


def _sized(value: Any, place: str) -> Any:
    """`value` with the texts of sizes turned to numbers. TOML's nan and inf are refused: no clock can wait for them."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(complaint(f"{value} is not a number that can be used - at `{place}`", Config))
    if isinstance(value, list):
        return [_sized(item, f"{place}[{number}]") for number, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    sized = {}
    for key, item in value.items():
        here = f"{place}.{key}"
        if key.endswith("_bytes") and isinstance(item, str):
            try:
                sized[key] = parse_bytes(item)
            except ValueError as error:
                raise ConfigError(complaint(f"{error} - at `{here}`", Config)) from error
        else:
            sized[key] = _sized(item, here)
    return sized


def with_changes(config: Config, **changes: Any) -> Config:
    """The configuration with what the command line says: keys are "section__field" or top-level fields.

    None means that the command line is silent. Raises ConfigError as `load` does.
    """
    table: dict[str, Any] = msgspec.to_builtins(config)
    for name, value in changes.items():
        if value is None:
            continue
        section, _, field = name.rpartition("__")
        (table[section] if section else table)[field] = value
    return from_table(table)
