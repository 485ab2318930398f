"""The workers of pools of this machine: what they will offer, known before the first of them, and how they are started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from cas.connection_settings import ConnectionSettings
from rexec.autoscale.settings import AutoscaleSettings, PoolKind, PoolSettings
from rexec.config import Config
from rexec.local import worker_command
from rexec.worker.announcement import announced
from rexec.worker.isolations import isolation_of
from rexec.worker.machine import offered_properties


def with_what_is_here(config: Config, settings: AutoscaleSettings, folder: Path) -> AutoscaleSettings:
    """The settings with what local workers will find out about this machine, so that work can wait for the first of them; and
    with its memory shared out among as many as a pool may have. Blocks: it runs the compilers that there are. `folder` is
    where it remembers what they said. Raises CannotIsolate."""
    if not any(pool.kind is PoolKind.LOCAL for pool in settings.pools):
        return settings
    worker = config.worker
    folder.mkdir(parents=True, exist_ok=True)
    isolation = isolation_of(worker).offered

    def offered(environment: dict[str, str]) -> dict[str, list[str]]:
        found = announced(worker.announce, {**worker.environment, **environment}, folder / "programs.json")
        properties: dict[str, list[str]] = {}
        for name, value in offered_properties({**found, **worker.properties}, isolation):
            properties.setdefault(name, []).append(value)
        return properties

    ordinary = offered({})
    resources = worker.offered_resources()
    memory_bytes = resources.get("memory", 0)

    def filled(pool: PoolSettings) -> PoolSettings:
        if pool.kind is not PoolKind.LOCAL:
            return pool
        return msgspec.structs.replace(
            pool,
            properties={**(offered(pool.environment) if pool.environment else ordinary), **pool.properties},
            instance_names=pool.instance_names or tuple(worker.instance_names),
            cpu=pool.cpu or resources["cpu"] / 1000,
            memory_bytes=pool.memory_bytes or memory_bytes // pool.max,
        )

    return msgspec.structs.replace(settings, pools=tuple(map(filled, settings.pools)))


class LocalCommand:
    """Makes the command line of a worker process; a Command of rexec/autoscale/local_processes.py."""

    def __init__(
        self, server: str, config_file: Path | None, configured: AutoscaleSettings, connection: ConnectionSettings
    ) -> None:
        """`configured` are the pools without what workers find out themselves; `connection` is for servers that are not reached
        through a Unix socket."""
        self._server = server
        self._connection: dict[str, str] = {} if server.startswith("unix:") else msgspec.structs.asdict(connection)
        self._config_file = config_file
        self._configured = {pool.name: pool for pool in configured.pools}

    def __call__(self, pool: PoolSettings, name: str, work_dir: Path) -> Sequence[str]:
        """`pool` says what the worker may use, too."""
        command = worker_command(self._server, pool.slots, work_dir, self._config_file, name)
        # What the configuration has for the one worker of a machine cannot be shared by several.
        command += ["--cache-dir", str(work_dir / "cache"), "--metrics-listen", ""]
        command += ["--drain-grace-seconds", f"{pool.drain_seconds:g}"]
        for option, file in self._connection.items():
            if file:
                command += [f"--{option.replace('_', '-')}", file]
        for instance_name in pool.instance_names:
            command += ["--instance-name", instance_name]
        for property_name, values in self._configured[pool.name].properties.items():
            for value in values:
                command += ["--property", f"{property_name}={value}"]
        for variable, value in pool.environment.items():
            command += ["--environment", f"{variable}={value}"]
        if pool.cpu:
            command += ["--resource", f"cpu={round(pool.cpu * 1000)}"]
        if pool.memory_bytes:
            command += ["--resource", f"memory={pool.memory_bytes}"]
        return command
