"""One bucket of an object store: requests with bounds, and failures in this project's terms.

The requests themselves, their retries and their signatures are the library's (obstore). What comes back is not looked at
here: whether it is the right bytes is for those to decide who know what they asked for.

A request that its caller gives up goes on until it ends by itself, and `close` waits for it: the library's threads hand
their answers to Python, and a process that ends under them aborts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self, TypeVar
from uuid import uuid4

import structlog

from cas.errors import StatusError, Unavailable
from cas.store import CHUNK_BYTES

log = structlog.get_logger()
T = TypeVar("T")

PART_BYTES: Final = 5 << 20
"""How much of a large object is sent in one request: the least that S3 takes, because each upload under way holds
PARTS_AT_ONCE of them in memory, and one that is filled."""
PARTS_AT_ONCE: Final = 2
MAX_PARTS: Final = 9_000
"""S3 takes 10,000 parts of one object: larger objects are sent in larger parts."""
SETTLE_SECONDS: Final = 0.05
"""The library's threads let go of Python a moment after their last answer."""


class BucketUnusable(Exception):
    """The bucket cannot be used as it is configured; the text names it, the request and the reason."""


class ObjectNotFound(Exception):
    """The bucket has no such object."""


class RequestRefused(Unavailable):
    """The object store does not let us do this; to clients it is as good as away."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the bucket says of an object."""

    size_bytes: int
    modified: float
    """When it was written, in seconds since the epoch."""
    version: str
    """Another one if it was written again with other bytes."""


class Bucket:
    """The objects below a prefix of one bucket. Use it as an async context manager."""

    def __init__(
        self, objects: Any, name: str, prefix: str = "", *, max_requests: int = 64, request_seconds: float = 90.0
    ) -> None:
        """`objects` is a store of the library, or does what one does; `request_seconds` bounds a request with its retries."""
        import obstore  # only who has a bucket needs the library

        self.name = name
        self._open_writer = getattr(objects, "open_writer_async", partial(obstore.open_writer_async, objects))
        self._failures = (obstore.exceptions.BaseError, OSError, ValueError, RuntimeError)
        self._objects = objects
        self._prefix = prefix
        self._room = asyncio.Semaphore(max_requests)
        self._request_seconds = request_seconds
        self._under_way: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._request_seconds)
        await asyncio.sleep(SETTLE_SECONDS)

    async def head(self, key: str) -> Found:
        """Raises ObjectNotFound, Unavailable."""
        return _found(await self._ask("HEAD", key, partial(self._objects.head_async, self._prefix + key)))

    async def get(self, key: str, size_bytes: int | None, max_bytes: int) -> tuple[bytes, Found]:
        """A small object, whole. One that has not `size_bytes`, or more than `max_bytes`, is not read: its bytes are b"".

        Raises ObjectNotFound, Unavailable.
        """

        async def whole() -> tuple[bytes, Found]:
            answer = await self._objects.get_async(self._prefix + key)
            found = _found(answer.meta)
            if found.size_bytes > max_bytes or found.size_bytes != (
                found.size_bytes if size_bytes is None else size_bytes
            ):
                return b"", found
            return bytes(await answer.bytes_async()), found

        return await self._ask("GET", key, whole)

    @asynccontextmanager
    async def open(self, key: str, start: int, end: int) -> AsyncIterator[tuple[Found, AsyncIterator[bytes]]]:
        """The bytes from `start` to before `end`, in pieces of at most CHUNK_BYTES. Raises ObjectNotFound, Unavailable."""
        options = {"range": (start, end)}
        answer = await self._ask("GET", key, partial(self._objects.get_async, self._prefix + key, options=options))
        async with aclosing(self._pieces(key, answer.stream(min_chunk_size=CHUNK_BYTES))) as pieces:
            yield _found(answer.meta), pieces

    async def _pieces(self, key: str, stream: Any) -> Any:
        while True:
            try:
                data = bytes(await self._ask("GET", key, stream.__anext__))
            except StopAsyncIteration:
                return
            for position in range(0, len(data), CHUNK_BYTES):
                yield data[position : position + CHUNK_BYTES]

    async def put(self, key: str, data: bytes) -> None:
        """A small object, in one request, in place of any earlier one. Raises Unavailable."""
        await self._ask("PUT", key, partial(self._objects.put_async, self._prefix + key, data, use_multipart=False))

    async def upload(self, key: str, chunks: AsyncIterator[bytes], size_bytes: int) -> None:
        """A large object, in parts. It becomes visible after the last chunk; if they raise, or the call is cancelled, the
        parts are thrown away. Raises Unavailable."""
        part_bytes = max(PART_BYTES, -(-size_bytes // MAX_PARTS))
        writer = self._open_writer(self._prefix + key, buffer_size=part_bytes, max_concurrency=PARTS_AT_ONCE)
        try:
            async for chunk in chunks:
                if chunk:
                    await self._ask("PUT", key, partial(writer.write, chunk))
            await self._ask("PUT", key, writer.close)
        except BaseException as reason:
            # A task of its own: who cancels a call does not wait for the other side, `__aexit__` does.
            self._start(partial(writer.__aexit__, type(reason), reason, None))
            raise

    async def renew(self, key: str) -> None:
        """Make the object as young as if it had just been written.

        S3 refuses to copy an object onto itself, so it goes there and back. Raises ObjectNotFound, Unavailable.
        """
        there = f"{self._prefix}renewed/{uuid4().hex}"
        await self._ask("COPY", key, partial(self._objects.copy_async, self._prefix + key, there))
        try:
            await self._ask("COPY", key, partial(self._objects.copy_async, there, self._prefix + key))
        finally:
            with suppress(ObjectNotFound, Unavailable):  # what is left there expires as everything does
                await self._ask("DELETE", key, partial(self._objects.delete_async, there))

    async def check(self) -> None:
        """Try everything that will be needed. Raises BucketUnusable, naming the request that fails."""
        key, request, data = f"check/{uuid4().hex}", "HEAD", b"rexec"
        try:
            with suppress(ObjectNotFound):
                await self.head(key)
            request = "PUT"
            await self.put("check/rexec", data)
            request = "GET"
            if (await self.get("check/rexec", len(data), len(data)))[0] != data:
                raise BucketUnusable(f"bucket {self.name} does not give back what was put into it")
        except RequestRefused as refused:
            hint = "; without s3:ListBucket every missing object is one" if request == "HEAD" else ""
            raise BucketUnusable(
                f"bucket {self.name} refuses {request}{hint}: {_first_line(refused.__cause__)}"
            ) from refused
        except ObjectNotFound as reason:
            raise BucketUnusable(f"bucket {self.name} does not give back what was put into it: {reason}") from reason
        except StatusError as reason:
            raise BucketUnusable(
                f"bucket {self.name} does not answer {request}: {_first_line(reason.__cause__)}"
            ) from reason

    async def _ask(self, operation: str, key: str, request: Callable[[], Awaitable[T]]) -> T:
        async with self._room:
            task = self._start(request)
            try:
                async with asyncio.timeout(self._request_seconds):
                    return await asyncio.shield(task)
            except FileNotFoundError as reason:
                if operation == "PUT":  # there is no such bucket
                    raise self._failure(operation, key, reason) from reason
                raise ObjectNotFound(_first_line(reason)) from reason
            except self._failures as reason:
                raise self._failure(operation, key, reason) from reason

    def _start(self, request: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.create_task(_awaited(request))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # told to who waited; if nobody did, nobody wants it

    def _failure(self, operation: str, key: str, reason: Exception) -> StatusError:
        refused = type(reason).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
        log.warning("object store fails", bucket=self.name, operation=operation, key=key, reason=_first_line(reason))
        kind = RequestRefused if refused else Unavailable
        return kind(f"the object store {'refuses' if refused else 'does not answer'} {operation}")


async def _awaited(request: Callable[[], Awaitable[T]]) -> T:
    return await request()


def _found(meta: Any) -> Found:
    modified = meta["last_modified"].timestamp()
    return Found(meta["size"], modified, f"{meta['e_tag']} {meta['size']} {modified}")


def _first_line(reason: BaseException | None) -> str:
    """The library adds a picture of its insides on further lines."""
    return (str(reason).strip().splitlines() or [type(reason).__name__])[0][:500]
