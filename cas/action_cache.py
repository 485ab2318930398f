"""Action results by the digest of their action.

The key need not name an Action that exists: some clients keep results under the digest of something else, so the caches
never look the action up. A result is kept as its encoded message, unknown fields included.

    MemoryActionCache   in memory
    DiskActionCache     in an SQLite file (cas/action_cache_disk.py)
    Complete            answers only with results whose blobs all exist (cas/complete.py)
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple, Protocol

from cas.complete import Complete, missing_of
from cas.digest import Digest
from cas.errors import ActionResultNotFound
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


class ActionKey(NamedTuple):
    """What an action result is kept under; instances do not see each other's results."""

    instance_name: str
    action_digest: Digest

    def not_found(self) -> ActionResultNotFound:
        """The failure of a look-up of this key."""
        return ActionResultNotFound(f"no result of action {self.action_digest}")


class ActionCache(Protocol):
    """Action results by key. Every implementation passes tests/contracts."""

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        """The result, a message of the caller's own. Raises ActionResultNotFound."""
        ...

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        """Keep `result` in place of any earlier one. Raises StoreFull if it can never fit."""
        ...


class MemoryActionCache:
    """A bounded ActionCache in memory that forgets the results used longest ago."""

    def __init__(self, max_entries: int = 100_000) -> None:
        if max_entries < 1:
            raise ValueError(f"max_entries is {max_entries}; expected at least 1")
        self._max_entries = max_entries
        self._results: OrderedDict[ActionKey, bytes] = OrderedDict()

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        encoded = self._results.get(key)
        if encoded is None:
            raise key.not_found()
        self._results.move_to_end(key)
        return re_pb2.ActionResult.FromString(encoded)

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        self._results[key] = result.SerializeToString()
        self._results.move_to_end(key)
        if len(self._results) > self._max_entries:
            self._results.popitem(last=False)


__all__ = ["ActionCache", "ActionKey", "Complete", "MemoryActionCache", "missing_of"]
