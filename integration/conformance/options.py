"""What a run of the kit is told: where the server is, and the hooks for what no client can bring about.

A hook is something that the kit has done to the server; on the command line it is a shell command. A case whose hook is not
given is NOT SUPPORTED and names the option.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from integration.conformance.case import NotSupported

Hook = Callable[[Mapping[str, str]], Awaitable[None]]
"""Does something to the server, told some values by name. Raises HookFailed."""


class HookFailed(Exception):
    """A hook could not do its work, so nothing can be said about the server."""


def shell_hook(command: str) -> Hook:
    """A hook that runs a shell command to its end, with the values in its environment."""

    async def run(values: Mapping[str, str]) -> None:
        process = await asyncio.create_subprocess_shell(
            command,
            env={**os.environ, **values},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode:
            said = output.decode(errors="replace")[-500:]
            raise HookFailed(f"the hook {command!r} ended with {process.returncode}: {said}")

    return run


@dataclass(frozen=True, slots=True)
class Options:
    """Everything that can be chosen for a run."""

    target: str
    """HOST:PORT or unix:PATH of the server."""
    tls: bool = False
    tls_ca: str = ""
    """PEM file of the authority that signed the server's certificate; empty: those of the system."""
    instance: str = ""
    other_instance: str | None = None
    """A second instance name of the server; best one with slashes."""
    token: str = ""
    """Sent as `authorization: Bearer TOKEN` with every call."""
    read_only_token: str = ""
    """The token of someone who may not update the action cache."""
    no_execute_token: str = ""
    """The token of someone who may not execute."""
    platform: tuple[tuple[str, str], ...] = ()
    """Properties that every action of the kit asks for; a server may need them to find a worker."""
    busybox: bytes = b""
    """A static busybox that every input root is to hold as /bin/sh and the rest, for workers that see nothing else."""
    offered: tuple[str, str] = ("OSFamily", "linux")
    """A property that a worker offers."""
    absent: tuple[str, str] = ("OSFamily", "plan9")
    """A property whose name the server knows, with a value that no worker offers."""
    restart_command: Hook | None = None
    """Ends the server without warning and starts it again with its state; returns when it answers."""
    lose_worker_command: Hook | None = None
    """Kills a worker that is running an action, so that another one, or itself started again, can take the action."""
    kill_action_command: Hook | None = None
    """Kills, as the platform would (SIGKILL from outside), the process that has the value MARKER on its command line."""
    store_bytes: int = 0
    """The server holds at most so many bytes of blobs, and may be filled until it evicts."""
    queue_limit: int = 0
    """The server refuses an action when so many are waiting."""
    leak_variable: str = ""
    """The name of a variable that is set in the environment of the server and of its workers."""
    timeout_seconds: float = 30.0
    """The bound of each case that does not set its own."""
    slow: bool = False

    def need(self, option: str) -> str:
        """The value of an option, as a text. Raises NotSupported if it was not given."""
        value = getattr(self, option)
        if not value:
            raise NotSupported(f"needs --{option.replace('_', '-')}")
        return str(value)

    def need_hook(self, option: str) -> Hook:
        """A hook. Raises NotSupported if it was not given."""
        self.need(option)
        hook: Hook = getattr(self, option)
        return hook
