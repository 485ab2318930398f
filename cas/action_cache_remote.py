"""An action cache that is another REAPI server's: what frontends read and a scheduler without a store of its own writes.

Whether all blobs of a result exist is that server's affair. A call that fails with UNAVAILABLE is tried again, as by
RemoteStore, so that a restart of the server is a delay and not a miss.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, cast

from grpc import aio

from cas.action_cache import ActionKey
from cas.errors import Code, StatusError, StoreFull
from cas.remote import CALL_SECONDS, retried
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.methods import methods_of

_METHODS = methods_of(re_pb2, "ActionCache")


class RemoteActionCache:
    """The ActionCache of the server behind `channel`, for all of its instance names."""

    def __init__(
        self, channel: aio.Channel, headers: Iterable[tuple[str, str]] = (), retry_seconds: float = 30.0
    ) -> None:
        self._headers = headers  # iterated for each call, because a token may be replaced meanwhile
        self._retry_seconds = retry_seconds
        self._get, self._put = (
            cast(
                Any,
                channel.unary_unary(
                    _METHODS[name].path,
                    request_serializer=_METHODS[name].request_type.SerializeToString,
                    response_deserializer=re_pb2.ActionResult.FromString,
                ),
            )
            for name in ("GetActionResult", "UpdateActionResult")
        )

    async def get(self, key: ActionKey) -> re_pb2.ActionResult:
        """See ActionCache."""
        request = re_pb2.GetActionResultRequest(
            instance_name=key.instance_name,
            action_digest=key.action_digest.to_proto(),
            digest_function=cast(re_pb2.DigestFunction.Value, key.action_digest.function.value),
        )
        try:
            result: re_pb2.ActionResult = await self._retried(self._get, request)
        except StatusError as failure:
            if failure.code is Code.NOT_FOUND:
                raise key.not_found() from failure
            raise
        if not result.execution_metadata.ByteSize():
            result.ClearField("execution_metadata")  # servers add an empty one for the sake of some clients
        return result

    async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
        """See ActionCache."""
        request = re_pb2.UpdateActionResultRequest(
            instance_name=key.instance_name,
            action_digest=key.action_digest.to_proto(),
            action_result=result,
            digest_function=cast(re_pb2.DigestFunction.Value, key.action_digest.function.value),
        )
        try:
            await self._retried(self._put, request)
        except StatusError as failure:
            if failure.code is Code.RESOURCE_EXHAUSTED:
                raise StoreFull(str(failure)) from failure
            raise

    async def _retried(self, call: Any, request: Any) -> re_pb2.ActionResult:
        attempt = partial(call, request, timeout=CALL_SECONDS)
        answer: re_pb2.ActionResult = await retried(
            lambda: attempt(metadata=tuple(self._headers)), self._retry_seconds
        )  # fmt: skip
        return answer
