"""Objects in memory with the interface of the library's stores, and everything that goes wrong with those of others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Self

from obstore.exceptions import GenericError, PermissionDeniedError

NOW = 1_800_000_000.0


class Clock:
    """Seconds since the epoch that pass when a test says so."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class FaultyObjects:
    """Requests fail while `down`, are refused while `refused` has their name, and wait while `held` is set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.down = False
        self.gone = False
        """There is no such bucket."""
        self.refused: set[str] = set()
        self.held: asyncio.Event | None = None
        self.cut_bytes: int | None = None
        """Streams end after so many bytes."""
        self.breaks_copies = False
        self.requests: list[str] = []
        self.asked = asyncio.Event()
        self.under_way = self.most_under_way = 0

    async def _request(self, name: str) -> None:
        self.requests.append(name)
        self.asked.set()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await (self.held.wait() if self.held is not None else asyncio.sleep(0))
        finally:
            self.under_way -= 1
        if self.down:
            raise GenericError("error sending request\n\nDebug source: a secret inside")
        if self.gone:
            raise FileNotFoundError("no such bucket")
        if name in self.refused:
            raise PermissionDeniedError(f"the operation lacked privileges: {name}")

    def _meta(self, key: str) -> dict[str, Any]:
        if key not in self.objects:
            raise FileNotFoundError(f"object at location {key} not found")
        data, modified = self.objects[key]
        return {"size": len(data), "last_modified": datetime.fromtimestamp(modified, UTC), "e_tag": str(hash(data))}

    async def head_async(self, key: str) -> dict[str, Any]:
        await self._request("HEAD")
        return self._meta(key)

    async def get_async(self, key: str, *, options: dict[str, Any] | None = None) -> _Answer:
        await self._request("GET")
        start, end = (options or {}).get("range", (0, 1 << 62))
        return _Answer(self._meta(key), self.objects[key][0][start:end], self.cut_bytes)

    async def put_async(self, key: str, data: bytes, *, use_multipart: bool) -> None:
        await self._request("PUT")
        self.objects[key] = (data, self.clock())

    async def copy_async(self, key: str, to: str) -> None:
        await self._request("COPY")
        if self.breaks_copies:
            raise GenericError("bad request")
        self._meta(key)
        self.objects[to] = (self.objects[key][0], self.clock())

    async def delete_async(self, key: str) -> None:
        await self._request("DELETE")
        self.objects.pop(key, None)

    def open_writer_async(self, key: str, *, buffer_size: int, max_concurrency: int) -> _Writer:
        return _Writer(self, key)


class _Answer:
    def __init__(self, meta: dict[str, Any], data: bytes, cut_bytes: int | None) -> None:
        self.meta = meta
        self._data = data if cut_bytes is None else data[:cut_bytes]

    async def bytes_async(self) -> bytes:
        return self._data

    def stream(self, *, min_chunk_size: int) -> AsyncIterator[bytes]:
        return _Stream([self._data[at : at + min_chunk_size] for at in range(0, len(self._data), min_chunk_size)])


class _Stream:
    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._pieces:
            raise StopAsyncIteration
        return self._pieces.pop(0)


class _Writer:
    def __init__(self, objects: FaultyObjects, key: str) -> None:
        self._objects = objects
        self._key = key
        self._data = bytearray()

    async def write(self, data: bytes) -> None:
        await self._objects._request("PART")
        self._data += data

    async def close(self) -> None:
        await self._objects._request("COMPLETE")
        self._objects.objects[self._key] = (bytes(self._data), self._objects.clock())

    async def __aexit__(self, *_: object) -> None:
        self._objects.requests.append("ABORT")
