"""Fetching from outside: one URL becomes one blob in a store, checked before it is there.

Several clients that want the same share one fetch. It belongs to nobody in particular: a client that gives up leaves it
running for those who come back, until it ends or its own time is over (Remote Asset, FetchBlobRequest.timeout).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import structlog

from cas.assets_config import AssetSettings
from cas.digest import Digest
from cas.errors import Code, QueueFull, StatusError
from cas.fetch_failure import FetchFailed
from cas.fetch_qualifiers import Checksum
from cas.fetch_spool import Spool
from cas.hashing import DigestFunction
from cas.instances import Instance

log = structlog.get_logger()


class Source(Protocol):
    """Opens URLs: HttpSource, or what a test puts in its place."""

    def open(
        self, text: str, headers: Sequence[tuple[str, str]], *, encoded_allowed: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The content in pieces. Raises FetchFailed."""
        ...


class Wanted(NamedTuple):
    """What makes two fetches the same."""

    instance_name: str
    url: str
    headers: tuple[tuple[str, str], ...]
    checksum: Checksum | None
    function: DigestFunction


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of a fetch."""

    digest: Digest
    started_at: float
    """Seconds since 1970."""


class Fetcher:
    """Fetches URLs into stores. Use it as an async context manager; leaving it ends the fetches under way."""

    def __init__(
        self, settings: AssetSettings, source: Source, spool_directory: Path, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings
        self._source = source
        self._spool_directory = spool_directory
        self._clock = clock
        self._flights: dict[Wanted, _Flight] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        self._spool_directory.mkdir(parents=True, exist_ok=True)
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    def limit_seconds(self, asked_seconds: float | None) -> float:
        """How long one may wait for a fetch: what was asked for, within the settings'."""
        return min(asked_seconds or self._settings.fetch_seconds, self._settings.fetch_seconds)

    async def fetch(self, wanted: Wanted, instance: Instance, oldest_at: float | None) -> Fetched:
        """The content of the URL, in the store. One fetch under way is joined if it began no earlier than `oldest_at`.

        Raises FetchFailed if it cannot be had, QueueFull if too much is being fetched, and what the store raises.
        """
        flight = self._flights.get(wanted)
        if flight is None or (oldest_at is not None and flight.started_at < oldest_at):
            if len(self._running) >= self._settings.max_fetches:
                raise QueueFull(f"{len(self._running)} fetches are under way, and the limit is as many")
            flight = self._flights[wanted] = _Flight(self._clock())
            task = self._tasks.create_task(self._fly(flight, wanted, instance), name="fetch")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        await flight.landed.wait()
        if flight.failure is not None:
            raise flight.failure
        if flight.digest is None:
            raise FetchFailed(Code.UNAVAILABLE, "the server is stopping")
        return Fetched(flight.digest, flight.started_at)

    async def _fly(self, flight: _Flight, wanted: Wanted, instance: Instance) -> None:
        try:
            async with asyncio.timeout(self._settings.fetch_seconds):
                flight.digest = await self._transfer(wanted, instance)
        except TimeoutError:
            flight.failure = FetchFailed(
                Code.DEADLINE_EXCEEDED, f"the fetch took longer than {self._settings.fetch_seconds:g} s"
            )
        except (FetchFailed, StatusError) as failure:
            flight.failure = failure
        except Exception as fault:  # noqa: BLE001  # an edge: one fetch that fails must not end the server's others
            flight.failure = fault
        finally:
            if self._flights.get(wanted) is flight:
                del self._flights[wanted]
            flight.landed.set()

    async def _transfer(self, wanted: Wanted, instance: Instance) -> Digest:
        checksum = wanted.checksum
        check = checksum.start() if checksum is not None else None
        extra = [check] if check is not None else []
        with Spool(self._spool_directory, wanted.function, extra) as spool:
            async with (
                self._source.open(wanted.url, wanted.headers, encoded_allowed=checksum is not None) as pieces,
                aclosing(pieces) as body,  # type: ignore[type-var]  # an async generator
            ):
                async for piece in body:
                    await spool.append(piece)
            digest = await spool.finish()
            if checksum is not None and check is not None and check.digest() not in checksum.hashes:
                raise FetchFailed(
                    Code.ABORTED,
                    f"the content has another {checksum.algorithm} than the checksum asked for: {check.hexdigest()}",
                )
            await spool.store(digest, instance.store)
        log.info("fetched", digest=str(digest))
        return digest


class _Flight:
    """One fetch under way."""

    def __init__(self, started_at: float) -> None:
        self.started_at = started_at
        self.landed = asyncio.Event()
        self.digest: Digest | None = None
        self.failure: Exception | None = None
