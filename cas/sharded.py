"""A store spread over several others: each blob belongs to `replicas` of them by its hash, and to no other.

What happens when a shard does not answer follows from what the callers do with the answer:

- A blob whose shards all fail to answer is neither present nor missing. To call it missing would have clients upload it, to
  the shard that is away, again and again; to call it present would start actions whose inputs cannot be read. So the call
  fails with Unavailable, which names the shard, and clients try again. Calls about other blobs are not concerned.
- With two replicas a blob is present if a shard that answers has it, and missing if every one that answers lacks it, be it
  asked for or read: it is uploaded then, and kept by the ones that are there.
- A write succeeds if at least one of the blob's shards has it. A small blob that is found at a later shard only is written
  to the earlier ones as it is read; large ones are not copied behind their readers' back, they are uploaded again when
  their last copy goes.

Shards are asked for all their blobs of one call in one call, at the same time. All replicas are asked what is missing,
for a shard that was not asked would forget what it thinks nobody uses.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from cas.at_once import for_each
from cas.digest import Digest
from cas.errors import BlobNotFound, StatusError, StoreFull, Unavailable
from cas.shard import Shard, Shards
from cas.sharded_upload import upload
from cas.store import BlobStore


class Sharded:
    """A BlobStore over several, by name. The names decide where blobs belong: they must not change, their order may."""

    def __init__(
        self, shards: dict[str, BlobStore], replicas: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shards = Shards(shards, replicas, clock)
        self._at_once = len(shards)

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        present: set[Digest] = set()
        unknown: dict[Digest, int] = {}
        failures: list[Unavailable] = []
        groups = self._grouped(digests)

        async def ask(shard: Shard[BlobStore]) -> None:
            group = groups[shard]
            try:
                with shard.asked() as store:
                    present.update(set(group) - await store.find_missing(group))
            except Unavailable as reason:
                failures.append(reason)
                for digest in group:
                    unknown[digest] = unknown.get(digest, 0) + 1

        await for_each(groups, ask, self._at_once)
        wanted = {digest for group in groups.values() for digest in group}
        missing = wanted - present
        if failures and any(unknown.get(digest) == len(self._shards.of(digest)) for digest in missing):
            raise failures[0]
        return missing

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        blobs: dict[Digest, bytes] = {}
        failed: dict[Digest, Unavailable] = {}
        answered: set[Digest] = set()
        lacking: defaultdict[Shard[BlobStore], list[Digest]] = defaultdict(list)
        rest: dict[Digest, list[Shard[BlobStore]]] = {digest: list(self._shards.of(digest)) for digest in digests}
        while rest:
            groups: defaultdict[Shard[BlobStore], list[Digest]] = defaultdict(list)
            for digest, shards in rest.items():
                groups[shards.pop(0)].append(digest)

            async def ask(shard: Shard[BlobStore], groups: Mapping[Shard[BlobStore], list[Digest]] = groups) -> None:
                try:
                    with shard.asked() as store:
                        found = await store.read_many(groups[shard])
                except Unavailable as reason:
                    failed.update(dict.fromkeys(groups[shard], reason))
                    return
                blobs.update(found)
                answered.update(groups[shard])
                lacking[shard] += [digest for digest in groups[shard] if digest not in found]

            await for_each(groups, ask, self._at_once)
            rest = {digest: shards for digest, shards in rest.items() if digest not in blobs and shards}
        for digest, reason in failed.items():
            if digest not in answered:
                raise reason
        await self._repair({shard: [(it, blobs[it]) for it in lost if it in blobs] for shard, lost in lacking.items()})
        return blobs

    async def _repair(self, lost: Mapping[Shard[BlobStore], list[tuple[Digest, bytes]]]) -> None:
        """Give shards what they should have. One that cannot take it is none the worse."""

        async def give(shard: Shard[BlobStore]) -> None:
            try:
                with shard.asked() as store:
                    await store.write_many(lost[shard])
            except StatusError:
                pass

        await for_each((shard for shard, blobs in lost.items() if blobs), give, self._at_once)

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        data_of = dict(blobs)
        refusals: defaultdict[Digest, list[StatusError]] = defaultdict(list)
        groups = self._grouped(data_of)

        async def give(shard: Shard[BlobStore]) -> None:
            group = groups[shard]
            try:
                with shard.asked() as store:
                    refused = await store.write_many([(digest, data_of[digest]) for digest in group])
            except Unavailable as reason:
                refused = dict.fromkeys(group, reason)
            for digest, failure in refused.items():
                refusals[digest].append(failure)

        await for_each(groups, give, self._at_once)
        return {
            digest: worst(failures)
            for digest, failures in refusals.items()
            if len(failures) == len(self._shards.of(digest))
        }

    @asynccontextmanager
    async def open(
        self, digest: Digest, offset: int = 0, limit: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        away, answered = None, False
        async with AsyncExitStack() as stack:
            for shard in self._shards.of(digest):
                try:
                    with shard.asked() as store:
                        pieces = await stack.enter_async_context(store.open(digest, offset, limit))
                except BlobNotFound:
                    answered = True
                    continue
                except Unavailable as reason:
                    away = reason
                    continue
                yield pieces
                return
        raise BlobNotFound(digest) if answered or away is None else away

    async def put(self, digest: Digest, chunks: AsyncIterator[bytes]) -> None:
        failures = await upload(self._shards.of(digest), digest, chunks)
        if failures:
            raise worst(failures)

    def _grouped(self, digests: Iterable[Digest]) -> dict[Shard[BlobStore], list[Digest]]:
        groups: defaultdict[Shard[BlobStore], list[Digest]] = defaultdict(list)
        for digest in dict.fromkeys(digests):
            for shard in self._shards.of(digest):
                groups[shard].append(digest)
        return groups


def worst(failures: Sequence[StatusError]) -> StatusError:
    """The failure to tell of several: one that says what is wrong with the blob, or that there is no room, before one that
    only asks to try again."""
    ranked = sorted(failures, key=lambda failure: (isinstance(failure, Unavailable), isinstance(failure, StoreFull)))
    return ranked[0]
