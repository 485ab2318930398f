"""Which road a fetch from outside takes: a blob is a GET. Directories are only remembered, never fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from cas.assets import Kind
from cas.errors import Code
from cas.fetch import Fetched, Fetcher, Wanted
from cas.fetch_failure import FetchFailed
from cas.fetch_origin import is_fetchable
from cas.fetch_qualifiers import fetch_options
from cas.hashing import DigestFunction
from cas.instances import Instance


@dataclass(frozen=True, slots=True)
class Origin:
    """A fetch from outside, as a request asks for it."""

    instance: Instance
    uris: Sequence[str]
    """Of the request, all of them."""
    place: int
    """Which of them is to be fetched."""
    qualifiers: Mapping[str, str]
    function: DigestFunction
    oldest_at: float | None
    """A fetch under way that began earlier is not joined; seconds since 1970."""


class Origins(Protocol):
    """Gets content from outside."""

    def limit_seconds(self, asked_seconds: float | None) -> float:
        """How long a request may wait that asked for so many seconds."""
        ...

    def check(self, kind: Kind, uris: Sequence[str], qualifiers: Mapping[str, str]) -> bool:
        """Whether any of the URIs can be fetched. Raises MalformedRequest for qualifiers that are not understood."""
        ...

    async def fetch(self, kind: Kind, origin: Origin) -> Fetched:
        """The content, in the store. Raises FetchFailed, QueueFull, and what the store raises."""
        ...


class OutsideOrigins:
    """Blobs over HTTP."""

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetcher = fetcher

    def limit_seconds(self, asked_seconds: float | None) -> float:
        """See Origins."""
        return self._fetcher.limit_seconds(asked_seconds)

    def check(self, kind: Kind, uris: Sequence[str], qualifiers: Mapping[str, str]) -> bool:
        """See Origins."""
        if kind is not Kind.BLOB or not any(map(is_fetchable, uris)):
            return False
        fetch_options(qualifiers, uris)
        return True

    async def fetch(self, kind: Kind, origin: Origin) -> Fetched:
        """See Origins."""
        url = origin.uris[origin.place]
        if kind is not Kind.BLOB:
            raise FetchFailed(Code.NOT_FOUND, f"{url[:200]!r} is not fetched as a directory")
        options = fetch_options(origin.qualifiers, origin.uris)
        wanted = Wanted(origin.instance.name, url, options.headers[origin.place], options.checksum, origin.function)
        return await self._fetcher.fetch(wanted, origin.instance, origin.oldest_at)
