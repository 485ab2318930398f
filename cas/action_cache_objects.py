"""Action results in a bucket, beside its blobs (cas/objects.py).

    PREFIX/ac/INSTANCE/sha256/ab/HASH-SIZE      32 bytes of SHA-256, then the encoded ActionResult

The hash is over the object's key and the result: one that is cut short would decode to another result, and one in a wrong
place would answer for another action. It guards against accidents. Who may write to the bucket may make up results; that
is to be the servers alone.

Results expire as blobs do, and one that is used lives on: it is written again when half of its time has passed.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from cas.action_cache import ActionKey
from cas.bucket import Bucket, ObjectNotFound
from cas.errors import StoreFull, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

log = structlog.get_logger()

MAX_RESULT_BYTES: Final = 16 << 20
"""Larger ones are neither kept nor read: a result has 1 to 10 kB, and travels in messages of 4 MiB."""
_PLAIN: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}", re.ASCII).fullmatch
_HASH_BYTES: Final = 32


def key_of(key: ActionKey) -> str:
    """Where a result lies. An instance name that would not do as a part of a path is hashed."""
    name, digest = key.instance_name, key.action_digest
    instance = f"name={name}" if _PLAIN(name) else f"hash={hashlib.sha256(name.encode()).hexdigest()}"
    return f"ac/{instance}/{digest.function.name.lower()}/{digest.hash[:2]}/{digest.hash}-{digest.size_bytes}"


class ObjectActionCache:
    """An ActionCache in a bucket, which is the caller's to open and close. Raises Unavailable where it does not answer."""

    def __init__(
        self, bucket: Bucket, *, expires_seconds: float = 0.0, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        """`expires_seconds` after they were written the bucket deletes objects, never if it is 0."""
        self._bucket = bucket
        self._expires_seconds = expires_seconds
        self._clock = clock

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        """See ActionCache."""
        place = key_of(key)
        try:
            data, found = await self._bucket.get(place, None, MAX_RESULT_BYTES + _HASH_BYTES)
        except ObjectNotFound:
            raise key.not_found() from None
        encoded = data[_HASH_BYTES:]
        try:
            if data[:_HASH_BYTES] != _hash(place, encoded):
                raise DecodeError("wrong hash")
            result = re_pb2.ActionResult.FromString(encoded)
        except DecodeError as reason:
            log.warning("an object is not an action result", bucket=self._bucket.name, key=place, reason=str(reason))
            raise key.not_found() from reason
        if self._expires_seconds and self._clock() >= found.modified + self._expires_seconds / 2:
            try:
                await self._bucket.put(place, data)
            except Unavailable as reason:
                log.info("an old action result was not written again", key=place, reason=str(reason))
        return result

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        """See ActionCache."""
        encoded = result.SerializeToString()
        if len(encoded) > MAX_RESULT_BYTES:
            raise StoreFull(f"an action result of {len(encoded)} bytes; at most {MAX_RESULT_BYTES} are kept")
        place = key_of(key)
        await self._bucket.put(place, _hash(place, encoded) + encoded)


def _hash(place: str, encoded: bytes) -> bytes:
    return hashlib.sha256(place.encode() + b"\0" + encoded).digest()
