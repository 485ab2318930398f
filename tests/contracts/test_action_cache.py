"""What every ActionCache does (cas/action_cache.py)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from cas.action_cache import ActionCache, ActionKey
from cas.digest import Digest, DigestFunction
from cas.errors import ActionResultNotFound
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

OpenActionCache = Callable[[int], AbstractAsyncContextManager[ActionCache]]


def key(name: str, instance_name: str = "main") -> ActionKey:
    return ActionKey(instance_name, Digest.of(name.encode()))


def result(text: str) -> re_pb2.ActionResult:
    return re_pb2.ActionResult(stdout_raw=text.encode(), exit_code=3)


async def knows(cache: ActionCache, wanted: ActionKey) -> bool:
    try:
        await cache.get(wanted)
    except ActionResultNotFound:
        return False
    return True


async def test_a_result_is_found_under_its_key(action_cache: ActionCache) -> None:
    await action_cache.put(key("a"), result("of a"))
    await action_cache.put(key("b"), result("of b"))

    assert await action_cache.get(key("a")) == result("of a")
    assert await action_cache.get(key("b")) == result("of b")


async def test_an_unknown_action_has_no_result(action_cache: ActionCache) -> None:
    with pytest.raises(ActionResultNotFound, match=key("a").action_digest.hash):
        await action_cache.get(key("a"))


async def test_a_later_result_takes_the_place_of_an_earlier_one(action_cache: ActionCache) -> None:
    await action_cache.put(key("a"), result("old"))
    await action_cache.put(key("a"), result("new"))

    assert await action_cache.get(key("a")) == result("new")


async def test_instances_do_not_see_the_results_of_others(action_cache: ActionCache) -> None:
    await action_cache.put(key("a", "one"), result("of one"))

    assert not await knows(action_cache, key("a", "two"))
    assert not await knows(action_cache, key("a", ""))


async def test_size_and_function_of_the_digest_are_part_of_the_key(action_cache: ActionCache) -> None:
    digest = Digest("ab" * 32, 10)
    await action_cache.put(ActionKey("", digest), result("x"))

    assert not await knows(action_cache, ActionKey("", Digest("ab" * 32, 11)))
    assert not await knows(action_cache, ActionKey("", Digest("ab" * 32, 10, DigestFunction.BLAKE3)))


async def test_a_digest_of_any_size_is_a_key(action_cache: ActionCache) -> None:
    largest = ActionKey("x" * 300, Digest("ab" * 32, (1 << 63) - 1))
    await action_cache.put(largest, result("x"))

    assert await action_cache.get(largest) == result("x")


async def test_fields_that_we_do_not_know_are_kept(action_cache: ActionCache) -> None:
    """A client of a newer API, or one that keeps something of its own there, gets back what it sent."""
    unknown = bytes.fromhex("c23e03") + b"abc"  # field 1000, length-delimited
    sent = re_pb2.ActionResult.FromString(result("x").SerializeToString() + unknown)

    await action_cache.put(key("a"), sent)

    received = await action_cache.get(key("a"))
    assert unknown in received.SerializeToString()
    assert received == sent


async def test_a_result_is_the_callers_own(action_cache: ActionCache) -> None:
    sent = result("x")
    await action_cache.put(key("a"), sent)
    sent.exit_code = 77
    (await action_cache.get(key("a"))).exit_code = 78

    assert await action_cache.get(key("a")) == result("x")


async def test_an_empty_result_is_a_result(action_cache: ActionCache) -> None:
    await action_cache.put(key("a"), re_pb2.ActionResult())

    assert await action_cache.get(key("a")) == re_pb2.ActionResult()


async def test_more_results_than_fit_push_out_old_ones(open_action_cache: OpenActionCache) -> None:
    async with open_action_cache(3) as cache:
        for name in "abcde":
            await cache.put(key(name), result(name))

        assert [await knows(cache, key(name)) for name in "abcde"] == [False, False, True, True, True]


async def test_replacing_a_result_pushes_nothing_out(open_action_cache: OpenActionCache) -> None:
    async with open_action_cache(2) as cache:
        await cache.put(key("a"), result("a"))
        for number in range(5):
            await cache.put(key("b"), result(str(number)))

        assert await knows(cache, key("a"))
