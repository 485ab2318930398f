"""Blobs over several stores of which some are away."""

from __future__ import annotations

import pytest

from cas.action_cache import ActionCache, ActionKey, Complete, MemoryActionCache
from cas.action_cache_sharded import ShardedActionCache
from cas.compose import Verified
from cas.digest import Digest
from cas.errors import ActionResultNotFound, BlobNotFound, DigestMismatch, Unavailable
from cas.memory import MemoryStore
from cas.shard import AWAY_SECONDS, Shards
from cas.sharded import Sharded
from cas.store import BlobStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from tests.blobs import MIB, blob, in_chunks, read
from tests.faulty_objects import Clock

NAMES = ("grpc://a:1", "grpc://b:1", "grpc://c:1")


class Away(MemoryStore):
    """A store that can be away, and counts what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False
        self.asked = 0

    def __getattribute__(self, name: str) -> object:
        if name in ("find_missing", "read_many", "write_many", "open", "put"):
            self.asked += 1
            if self.is_away:
                raise Unavailable("no connection")
        return super().__getattribute__(name)


def stores() -> dict[str, Away]:
    return {name: Away() for name in NAMES}


def sharded(over: dict[str, Away], replicas: int = 1, clock: Clock | None = None) -> Sharded:
    shards: dict[str, BlobStore] = dict(over)
    return Sharded(shards, replicas, clock or Clock())


def many(count: int = 60) -> dict[Digest, bytes]:
    return dict(blob(100, seed) for seed in range(count))


async def test_blobs_are_spread_evenly_and_each_is_where_its_hash_says() -> None:
    over = stores()
    blobs = many(300)
    await sharded(over).write_many(list(blobs.items()))

    assert sum(len(store.blobs) for store in over.values()) == 300
    assert all(60 <= len(store.blobs) <= 140 for store in over.values())
    backwards = dict(reversed(over.items()))
    assert await sharded(backwards).find_missing(blobs) == set()


def test_a_shard_that_is_added_takes_its_share_and_nothing_else_moves() -> None:
    three = Shards(dict.fromkeys(NAMES, 0), 1, Clock())
    four = Shards(dict.fromkeys((*NAMES, "grpc://d:1"), 0), 1, Clock())
    moved = [
        (three.of(digest)[0].name, four.of(digest)[0].name)
        for digest in many(400)
        if three.of(digest)[0].name != four.of(digest)[0].name
    ]
    assert {to for _, to in moved} == {"grpc://d:1"}
    assert 60 <= len(moved) <= 140


async def test_a_shard_that_is_away_concerns_only_its_own_blobs_and_is_named() -> None:
    over = stores()
    store, blobs = sharded(over), many()
    await store.write_many(list(blobs.items()))
    theirs = set(over[NAMES[1]].blobs)
    others = set(blobs) - theirs
    over[NAMES[1]].is_away = True

    assert await store.find_missing(others) == set()
    assert await store.read_many(list(others)) == {digest: blobs[digest] for digest in others}
    for ask in (store.find_missing(blobs), store.read_many(list(blobs)), read(store, next(iter(theirs)))):
        with pytest.raises(Unavailable, match="grpc://b:1"):
            await ask
    failures = await store.write_many(list(blobs.items()))
    assert set(failures) == theirs
    assert all(isinstance(failure, Unavailable) for failure in failures.values())


async def test_a_shard_that_is_away_is_left_alone_for_a_while() -> None:
    over, clock = stores(), Clock()
    store, blobs = sharded(over, clock=clock), many()
    over[NAMES[0]].is_away = True
    for _ in range(5):
        with pytest.raises(Unavailable):
            await store.find_missing(blobs)
    assert over[NAMES[0]].asked == 1

    over[NAMES[0]].is_away = False
    clock.now += AWAY_SECONDS
    assert await store.find_missing(blobs) == set(blobs)


@pytest.mark.parametrize("size_bytes", [100, 3 * MIB])
@pytest.mark.parametrize("away", NAMES)
async def test_with_two_replicas_any_one_shard_may_be_away(size_bytes: int, away: str) -> None:
    over = stores()
    store = sharded(over, replicas=2)
    kept, written = [blob(size_bytes, seed) for seed in range(6)], [blob(size_bytes, seed) for seed in range(6, 12)]
    for digest, data in kept:
        await store.put(digest, in_chunks(data))
    assert sum(len(shard.blobs) for shard in over.values()) == 12
    over[away].is_away = True

    assert await store.find_missing([digest for digest, _ in kept]) == set()
    for digest, data in written:
        await store.put(digest, in_chunks(data))
    for digest, data in [*kept, *written]:
        assert await read(store, digest) == data
        assert await store.read_many([digest]) == {digest: data}
    for nowhere in (blob(size_bytes, seed)[0] for seed in range(90, 96)):
        assert await store.find_missing([nowhere]) == {nowhere}
        assert await store.read_many([nowhere]) == {}
        with pytest.raises(BlobNotFound):
            await read(store, nowhere)


async def test_with_both_of_its_shards_away_a_blob_is_unavailable_but_one_that_is_found_is_present() -> None:
    over = stores()
    store, blobs = sharded(over, replicas=2), many(30)
    await store.write_many(list(blobs.items()))
    over[NAMES[0]].is_away = over[NAMES[1]].is_away = True
    at_the_third = set(over[NAMES[2]].blobs)

    assert await store.find_missing(at_the_third) == set()
    with pytest.raises(Unavailable):
        await store.find_missing(blobs)
    assert set(await store.write_many(list(blobs.items()))) == set(blobs) - at_the_third


async def test_what_a_shard_has_lost_is_given_back_to_it_when_it_is_read() -> None:
    over = stores()
    store, blobs = sharded(over, replicas=2), many(30)
    await store.write_many(list(blobs.items()))
    had = set(over[NAMES[0]].blobs)
    over[NAMES[0]].__init__()  # type: ignore[misc]  # as after the loss of its disk

    assert await store.read_many(list(blobs)) == blobs

    first = {digest for digest in blobs if Shards(dict.fromkeys(NAMES, 0), 2, Clock()).of(digest)[0].name == NAMES[0]}
    assert set(over[NAMES[0]].blobs) == first & had != set()


async def test_a_sender_who_breaks_off_does_not_make_shards_count_as_away() -> None:
    over = stores()
    store = sharded(over, replicas=2)
    digest, data = blob(3 * MIB)

    async def broken() -> object:
        yield data[:MIB]
        raise Unavailable("the client is gone")

    for _ in range(3):
        with pytest.raises(Unavailable, match="the client is gone"):
            await store.put(digest, broken())  # type: ignore[arg-type]
    await store.put(digest, in_chunks(data))
    assert await read(store, digest) == data


async def test_wrong_bytes_get_into_no_shard() -> None:
    over = stores()
    digest, data = blob(3 * MIB)
    with pytest.raises(DigestMismatch):
        await Verified(sharded(over, replicas=2)).put(digest, in_chunks(b"!" + data[1:]))
    assert not any(shard.blobs for shard in over.values())


async def test_a_fault_of_a_shard_is_not_taken_for_a_success() -> None:
    class Faulty(MemoryStore):
        async def put(self, digest: Digest, chunks: object) -> None:
            raise OSError("disk")

    digest, data = blob(3 * MIB)
    with pytest.raises(BaseException, match=r"disk|unhandled"):
        await Sharded({"one": Faulty(), "two": Faulty()}, 2).put(digest, in_chunks(data))


# Action results


async def test_a_shard_without_the_blobs_of_a_result_keeps_it_all_the_same() -> None:
    """A shard answers with complete results only, and has but its share of the blobs."""
    shards: dict[str, ActionCache] = {name: Complete(MemoryActionCache(), MemoryStore()) for name in NAMES}
    over: dict[str, BlobStore] = dict(stores())
    store = Sharded(over)
    cache = Complete(ShardedActionCache(shards), store)
    digest, data = blob(10)
    key = ActionKey("main", Digest.of(b"action"))
    result = re_pb2.ActionResult(stdout_digest=digest.to_proto(), exit_code=1)
    await cache.put(key, result)
    with pytest.raises(ActionResultNotFound):
        await cache.get(key)
    await store.write_many([(digest, data)])
    assert await cache.get(key) == result
    for shard in shards.values():
        with pytest.raises(ActionResultNotFound):
            await shard.get(key)


async def test_results_outlive_a_shard_with_two_replicas_and_are_unavailable_with_one() -> None:
    class Gone(MemoryActionCache):
        away = False

        async def get(self, key: ActionKey) -> re_pb2.ActionResult:
            if self.away:
                raise Unavailable("no connection")
            return await super().get(key)

    keys = [ActionKey("", Digest.of(f"{number}".encode())) for number in range(20)]
    for replicas in (1, 2):
        shards = {name: Gone() for name in NAMES}
        over: dict[str, ActionCache] = dict(shards)
        cache = ShardedActionCache(over, replicas)
        for key in keys:
            await cache.put(key, re_pb2.ActionResult(exit_code=4))
        shards[NAMES[0]].away = True
        unavailable = 0
        for key in keys:
            try:
                assert (await cache.get(key)).exit_code == 4
            except Unavailable:
                unavailable += 1
        if replicas > 1:
            for number in range(20, 40):  # what the others lack is a miss, and costs a run
                with pytest.raises(ActionResultNotFound):
                    await cache.get(ActionKey("", Digest.of(f"{number}".encode())))
        assert (unavailable > 0) == (replicas == 1)
