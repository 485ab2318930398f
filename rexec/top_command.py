"""`rexec top`: what goes on, drawn again and again until q or Ctrl-C; without a terminal once, as text.

A server that is away for a while, as during a restart, ends nothing: the last picture stays, with a line that says so.
"""

from __future__ import annotations

import asyncio
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TextIO

from rich.console import Console
from rich.live import Live

from cas.connection_settings import ConnectionSettings
from protos.rexec.scheduler.v1 import status_pb2
from rexec.status_client import CannotShow, StatusClient, status_client
from rexec.status_text import json_line
from rexec.top_view import view

LEAVING = frozenset(b"qQ\x03\x04\x1b")
"""Keys that end it: q, Ctrl-C, Ctrl-D, Escape."""

OTHER_LINES = 16
"""Of the screen, beside the invocations."""

ALL = 1000
"""More invocations than an overview has."""


async def show_once(server: str, connection: ConnectionSettings, request: status_pb2.GetOverviewRequest, *, as_json: bool,
                    output: TextIO) -> None:  # fmt: skip
    """Write one picture as text, or the overview as JSON. Raises CannotShow."""
    async with status_client(server, connection) as client:
        overview = await client.overview(request)
    if as_json:
        output.write(json_line(overview) + "\n")
        return
    width = None if output.isatty() else 160
    console = Console(file=output, width=width, highlight=False, color_system="auto" if output.isatty() else None)
    console.print(view(overview, server, "", ALL))


async def show_live(
    server: str, connection: ConnectionSettings, request: status_pb2.GetOverviewRequest, interval_seconds: float
) -> None:
    """Draw on the terminal until a key ends it. Raises CannotShow if the first answer fails."""
    console = Console(highlight=False)
    async with status_client(server, connection) as client:
        overview = await client.overview(request)
        async with _leaving(sys.stdin) as leave:
            with Live(console=console, screen=True, auto_refresh=False) as live:
                notice = ""
                while True:
                    live.update(view(overview, server, notice, console.height - OTHER_LINES), refresh=True)
                    if await _within(leave, interval_seconds):
                        return
                    overview, notice = await _next(client, request, overview, leave)
                    if leave.is_set():
                        return


async def _next(
    client: StatusClient,
    request: status_pb2.GetOverviewRequest,
    last: status_pb2.Overview,
    leave: asyncio.Event,
) -> tuple[status_pb2.Overview, str]:
    """The next overview, or the last one and why there is no newer one. Returns at once when a key ends it."""
    asking = asyncio.ensure_future(client.overview(request))
    leaving = asyncio.ensure_future(leave.wait())
    try:
        await asyncio.wait((asking, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            return last, ""
        return asking.result(), ""
    except CannotShow as failure:
        return last, f"not up to date: {failure}"
    finally:
        for task in (asking, leaving):
            task.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


@asynccontextmanager
async def _leaving(keyboard: TextIO) -> AsyncIterator[asyncio.Event]:
    """An event that a key sets. Keys come at once and unseen meanwhile."""
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()

    def pressed() -> None:
        keys = keyboard.buffer.raw.read(64) if hasattr(keyboard.buffer, "raw") else keyboard.buffer.read(1)
        if not keys or LEAVING.intersection(keys):
            leave.set()

    with _unbuffered(keyboard):
        loop.add_reader(keyboard.fileno(), pressed)
        try:
            yield leave
        finally:
            loop.remove_reader(keyboard.fileno())


@contextmanager
def _unbuffered(keyboard: TextIO) -> Iterator[None]:
    before = termios.tcgetattr(keyboard.fileno())
    try:
        tty.setcbreak(keyboard.fileno())
        yield
    finally:
        termios.tcsetattr(keyboard.fileno(), termios.TCSADRAIN, before)
