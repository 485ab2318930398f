"""One of the stores that a sharded store is spread over, and whether it is away.

A store that does not answer costs each call the time in which it is tried again. So after a failure the others are spared
that for AWAY_SECONDS: what needs the store fails at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Final, Generic, TypeVar

import structlog

from cas.digest import Digest
from cas.errors import Unavailable

log = structlog.get_logger()
S = TypeVar("S")

AWAY_SECONDS: Final = 3.0


class Shard(Generic[S]):
    """A store, or an action cache, with its name."""

    def __init__(self, name: str, store: S, clock: Callable[[], float]) -> None:
        self.name = name
        self.store = store
        self._clock = clock
        self._key = blake2b(name.encode(), digest_size=16).digest()
        self._away_until = float("-inf")

    def score(self, digest: Digest) -> bytes:
        """How much this shard wants that blob: the highest of all shards has it (rendezvous hashing). It depends on nothing
        but this shard's name and the blob, so that other shards come and go without moving what is here."""
        return blake2b(digest.hash.encode(), key=self._key, digest_size=8).digest()

    @property
    def is_away(self) -> bool:
        """Whether it failed to answer a moment ago."""
        return self._clock() < self._away_until

    @contextmanager
    def asked(self) -> Iterator[S]:
        """The store, for one call. Raises Unavailable with the shard's name, at once if the shard is away."""
        if self.is_away:
            raise Unavailable(f"shard {self.name} is away")
        try:
            yield self.store
        except Unavailable as reason:
            if not self.is_away:
                log.warning("a shard does not answer", shard=self.name, reason=str(reason))
            self._away_until = self._clock() + AWAY_SECONDS
            raise Unavailable(f"shard {self.name} does not answer: {reason}") from reason


class Shards(Generic[S]):
    """All shards, and which of them a digest belongs to."""

    def __init__(self, shards: dict[str, S], replicas: int, clock: Callable[[], float]) -> None:
        if not 1 <= replicas <= len(shards):
            raise ValueError(f"replicas is {replicas}; expected 1 to the number of shards, {len(shards)}")
        self._shards = [Shard(name, store, clock) for name, store in shards.items()]
        self._replicas = replicas

    def of(self, digest: Digest) -> list[Shard[S]]:
        """The shards that keep it, in the order in which they are asked."""
        if len(self._shards) == 1:
            return self._shards
        ranked = sorted(self._shards, key=lambda shard: shard.score(digest), reverse=True)
        return ranked[: self._replicas]
