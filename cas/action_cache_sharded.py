"""Action results spread over several servers by the digest of their action, as blobs are (cas/sharded.py).

A server answers with a result only if it has all blobs of it (REAPI, ActionCache.GetActionResult), and a shard has but its
share. So results travel wrapped: the encoded result is the `stdout_raw` of one that names no blobs, kept under a digest
made from the action's. Whoever asks a shard itself for the action finds nothing. Whether the blobs exist is for the caller
to ask of the sharded store (`Complete`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from google.protobuf.message import DecodeError

from cas.action_cache import ActionCache, ActionKey
from cas.digest import Digest
from cas.errors import ActionResultNotFound, StatusError, Unavailable
from cas.shard import Shards
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

_WRAPPED: Final = 99
"""The exit code of a wrapped result, so that no client takes one for a success."""


class ShardedActionCache:
    """An ActionCache over several, by name. Raises Unavailable where all shards of a result are away."""

    def __init__(
        self, shards: dict[str, ActionCache], replicas: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._shards = Shards(shards, replicas, clock)

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        """See ActionCache."""
        wrapped = _key(key)
        away, answered = None, False
        for shard in self._shards.of(wrapped.action_digest):
            try:
                with shard.asked() as cache:
                    found = await cache.get(wrapped)
                if found.exit_code == _WRAPPED:
                    return re_pb2.ActionResult.FromString(found.stdout_raw)
                answered = True
            except (ActionResultNotFound, DecodeError):
                answered = True
            except Unavailable as reason:
                away = reason
        raise key.not_found() if answered or away is None else away

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        """See ActionCache."""
        wrapped = _key(key)
        message = re_pb2.ActionResult(exit_code=_WRAPPED, stdout_raw=result.SerializeToString())
        kept, failure = False, None
        for shard in self._shards.of(wrapped.action_digest):
            try:
                with shard.asked() as cache:
                    await cache.put(wrapped, message)
                kept = True
            except StatusError as reason:
                failure = reason
        if failure is not None and not kept:
            raise failure


def _key(key: ActionKey) -> ActionKey:
    digest = key.action_digest
    text = f"sharded action result {digest.function.name} {digest.hash} {digest.size_bytes}"
    return ActionKey(key.instance_name, Digest.of(text.encode()))
