"""Remote Asset: Fetch and Push over the assets that are remembered, the stores, and the fetcher if there is one.

Two kinds of failure (Remote Asset, Fetch.FetchBlob and FetchBlobResponse.status): what is wrong with the request or with
this server, and a miss, end the call; what went wrong at the origin is the `status` of a response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from google.protobuf import duration_pb2, timestamp_pb2
from google.rpc import status_pb2

from cas.assets import Asset, AssetNotFound, Assets, Kind, Presence, asset_key
from cas.context import RequestContext
from cas.digest import Digest, function_for, parse_digests
from cas.errors import Code, InputsMissing, MalformedRequest, NotAllowed, StatusError, from_status
from cas.fetch_failure import FetchFailed
from cas.fetch_origin import is_fetchable
from cas.fetch_origins import Origin, Origins
from cas.fetch_qualifiers import checked, is_secret
from cas.hashing import DigestFunction
from cas.instances import Instances
from cas.services.fields import digest_field
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MAX_URIS: Final = 100
"""URIs of one request."""

MAX_URI_BYTES: Final = 16 << 10
"""One URI. BuildStream's have 200, signed URLs some kB."""

MAX_REFERENCES: Final = 10_000
"""References of one push; an artifact of BuildStream has about 10."""

_FetchRequest = asset_pb2.FetchBlobRequest | asset_pb2.FetchDirectoryRequest
_PushRequest = asset_pb2.PushBlobRequest | asset_pb2.PushDirectoryRequest
_Response = TypeVar("_Response", asset_pb2.FetchBlobResponse, asset_pb2.FetchDirectoryResponse)


class FetchService:
    """build.bazel.remote.asset.v1.Fetch."""

    def __init__(
        self,
        instances: Instances,
        assets: Assets,
        presence: Presence,
        origins: Origins | None = None,
    ) -> None:
        """Without `origins` nothing is fetched: an asset that was not pushed is NOT_FOUND."""
        self._instances = instances
        self._assets = assets
        self._presence = presence
        self._origins = origins

    async def FetchBlob(
        self, request: asset_pb2.FetchBlobRequest, context: RequestContext
    ) -> asset_pb2.FetchBlobResponse:
        """A blob by URI. Raises MalformedRequest, AssetNotFound."""
        answer = await self._answer(Kind.BLOB, request, context)
        if answer.failure is not None and context.request_metadata.tool_details.tool_name == "bazel":
            # Bazel up to 5 does not look at `status`, and takes the digest that is not there for that of an empty file.
            raise _as_status(answer.failure)
        response = _filled(asset_pb2.FetchBlobResponse(), answer)
        if answer.digest is not None:
            response.blob_digest.CopyFrom(answer.digest.to_proto())
        return response

    async def FetchDirectory(
        self, request: asset_pb2.FetchDirectoryRequest, context: RequestContext
    ) -> asset_pb2.FetchDirectoryResponse:
        """A directory by URI. Raises as FetchBlob does."""
        answer = await self._answer(Kind.DIRECTORY, request, context)
        response = _filled(asset_pb2.FetchDirectoryResponse(), answer)
        if answer.digest is not None:
            response.root_directory_digest.CopyFrom(answer.digest.to_proto())
        return response

    async def _answer(self, kind: Kind, request: _FetchRequest, context: RequestContext) -> _Answer:
        _check_uris(request.uris)
        qualifiers = checked(request.qualifiers)
        instance = self._instances.readable(request.instance_name, context.identity)
        function = function_for(request.digest_function) or DigestFunction.SHA256
        oldest_at = _seconds(request.oldest_content_accepted) if request.HasField("oldest_content_accepted") else None
        asked_seconds = _duration(request.timeout) if request.HasField("timeout") else None
        keys = [asset_key(instance.name, kind, uri, qualifiers) for uri in request.uris]
        for uri, key in zip(request.uris, keys, strict=True):
            try:
                asset = await self._assets.get(key)
                # A digest of another function than was asked for would be of no use to the client.
                if request.digest_function and asset.digest.function is not function:
                    continue
                if oldest_at is not None and asset.made_at < oldest_at:
                    continue
                await self._presence.require(asset, kind, instance.store)
            except AssetNotFound:
                continue
            return _Answer(uri, qualifiers, asset.digest)
        if self._origins is None or not self._origins.check(kind, request.uris, qualifiers):
            raise AssetNotFound(f"no {kind} is known for {request.uris[0][:200]!r} with these qualifiers")
        failed: _Answer | None = None
        limit_seconds = self._origins.limit_seconds(asked_seconds)
        uri = request.uris[0]
        try:
            async with asyncio.timeout(limit_seconds):
                for place, uri in enumerate(request.uris):
                    if not is_fetchable(uri):
                        continue
                    try:
                        fetched = await self._origins.fetch(
                            kind, Origin(instance, request.uris, place, qualifiers, function, oldest_at)
                        )
                    except FetchFailed as failure:
                        failed = failed or _Answer(uri, qualifiers, None, failure.to_proto())
                        continue
                    await self._assets.put([keys[place]], Asset(fetched.digest, fetched.started_at))
                    return _Answer(uri, qualifiers, fetched.digest)
        except TimeoutError:
            late = FetchFailed(Code.DEADLINE_EXCEEDED, f"the fetch took longer than {limit_seconds:g} s")
            return _Answer(uri, qualifiers, None, late.to_proto())
        if failed is None:
            raise AssetNotFound(f"no {kind} is known for {request.uris[0][:200]!r} with these qualifiers")
        return failed


class PushService:
    """build.bazel.remote.asset.v1.Push."""

    def __init__(
        self, instances: Instances, assets: Assets, presence: Presence, clock: Callable[[], float] = time.time
    ) -> None:
        self._instances = instances
        self._assets = assets
        self._presence = presence
        self._clock = clock

    async def PushBlob(self, request: asset_pb2.PushBlobRequest, context: RequestContext) -> asset_pb2.PushBlobResponse:
        """Remember a blob under URIs. Raises MalformedRequest, NotAllowed, InputsMissing for a blob that is not there."""
        await self._push(Kind.BLOB, request, "blob_digest", request.blob_digest, context)
        return asset_pb2.PushBlobResponse()

    async def PushDirectory(
        self, request: asset_pb2.PushDirectoryRequest, context: RequestContext
    ) -> asset_pb2.PushDirectoryResponse:
        """Remember a directory under URIs. Raises as PushBlob does; all of its tree must be there."""
        await self._push(Kind.DIRECTORY, request, "root_directory_digest", request.root_directory_digest, context)
        return asset_pb2.PushDirectoryResponse()

    async def _push(
        self, kind: Kind, request: _PushRequest, field: str, content: re_pb2.Digest, context: RequestContext
    ) -> None:
        # Who may say what a URI stands for may say what others build from, as with the results of actions.
        if not context.identity.may_update_action_cache:
            raise NotAllowed("not allowed")
        _check_uris(request.uris)
        qualifiers = checked(request.qualifiers)
        instance = self._instances.readable(request.instance_name, context.identity)
        function = function_for(request.digest_function)
        digest = digest_field(content, field, function)
        references = len(request.references_blobs) + len(request.references_directories)
        if references > MAX_REFERENCES:
            raise MalformedRequest(
                f"the asset refers to {references} blobs and directories; {MAX_REFERENCES} is the most"
            )
        blobs = _references(request.references_blobs, digest.function, "references_blobs")
        directories = _references(request.references_directories, digest.function, "references_directories")
        now = self._clock()
        expires_at = _seconds(request.expire_at) if request.HasField("expire_at") else None
        missing = await self._presence.missing(Asset(digest, now), kind, instance.store)
        if missing:
            raise InputsMissing(missing)
        # What it refers to is a hint. BuildStream names directories that it does not have and did not upload; what is not
        # here now is not asked for later.
        held_blobs = await self._presence.held(blobs, Kind.BLOB, instance.store)
        held_directories = await self._presence.held(directories, Kind.DIRECTORY, instance.store)
        asset = Asset(digest, now, expires_at, held_blobs, held_directories)
        if held_directories:
            await self._presence.missing(asset, kind, instance.store)  # raises for more than can be looked for
        await self._assets.put([asset_key(instance.name, kind, uri, qualifiers) for uri in request.uris], asset)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a fetch came to."""

    uri: str
    qualifiers: Mapping[str, str]
    digest: Digest | None
    failure: status_pb2.Status | None = None


def _filled(response: _Response, answer: _Answer) -> _Response:
    """The response with everything but the digest. When the content expires is not known: the store may forget it."""
    response.uri = answer.uri
    for name, value in answer.qualifiers.items():
        if not is_secret(name):
            response.qualifiers.add(name=name, value=value)
    if answer.failure is not None:
        response.status.CopyFrom(answer.failure)
    if answer.digest is not None:
        response.digest_function = answer.digest.function.value
    return response


def _as_status(failure: status_pb2.Status) -> StatusError:
    """The failure of a fetch as one of the call. ABORTED becomes FAILED_PRECONDITION: clients repeat the other one."""
    code = Code.FAILED_PRECONDITION if failure.code == Code.ABORTED else failure.code
    return from_status(code, failure.message)


def _check_uris(uris: Sequence[str]) -> None:
    """Raises MalformedRequest. Clients ask without a URI to find out whether this service is here (BuildStream)."""
    if not uris:
        raise MalformedRequest("uris is empty; expected at least one")
    if len(uris) > MAX_URIS:
        raise MalformedRequest(f"uris has {len(uris)} entries; {MAX_URIS} is the most")
    for place, uri in enumerate(uris):
        if not uri:
            raise MalformedRequest(f"uris[{place}] is empty")
        if len(uri) > MAX_URI_BYTES:
            raise MalformedRequest(f"uris[{place}] has {len(uri)} characters; {MAX_URI_BYTES} is the most")


def _references(messages: Sequence[re_pb2.Digest], function: DigestFunction, field: str) -> list[Digest]:
    """The digests. Unset ones are left out: BuildStream sends them for the parts that an artifact does not have."""
    return parse_digests([message for message in messages if message.hash or message.size_bytes], function, field)


def _seconds(moment: timestamp_pb2.Timestamp) -> float:
    """Seconds since 1970. Not Timestamp's own conversions: they raise for what lies outside of the years 1 to 9999."""
    return moment.seconds + moment.nanos / 1e9


def _duration(duration: duration_pb2.Duration) -> float:
    """Seconds, more than 0. Raises MalformedRequest."""
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds <= 0:
        raise MalformedRequest(f"timeout is {seconds:g} s; expected more than 0")
    return seconds
