"""One cache in memory, as the services see it, and what a client sends to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field

from cas.action_cache import MemoryActionCache
from cas.complete import Complete
from cas.compose import Verified
from cas.digest import Digest
from cas.hashing import DigestFunction
from cas.instances import Instance, Instances
from cas.memory import MemoryStore
from protos.google.bytestream import bytestream_pb2


@dataclass
class Cache:
    """A store and an action cache under the instance name "main", and the same without a name."""

    memory: MemoryStore = field(default_factory=MemoryStore)
    results: MemoryActionCache = field(default_factory=MemoryActionCache)

    def __post_init__(self) -> None:
        self.store = Verified(self.memory)
        complete = Complete(self.results, self.store)
        self.instances = Instances([Instance(name, self.store, complete) for name in ("main", "")])

    async def add(self, *blobs: bytes, function: DigestFunction = DigestFunction.SHA256) -> list[Digest]:
        """Store blobs of any size, past every service."""
        digests = [Digest.of(blob, function) for blob in blobs]
        assert await self.store.write_many(list(zip(digests, blobs, strict=True))) == {}
        return digests


class Stream:
    """What a client sends in one Write, and how much of it has been read."""

    def __init__(self, messages: Iterable[bytestream_pb2.WriteRequest], broken: bool = False) -> None:
        self._messages = messages
        self._broken = broken
        self.read_messages = 0

    async def __aiter__(self) -> AsyncIterator[bytestream_pb2.WriteRequest]:
        for message in self._messages:
            self.read_messages += 1
            yield message
        if self._broken:
            raise ConnectionResetError("the client is gone")
