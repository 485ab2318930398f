"""REAPI ActionCache over the action caches: results by action digest, with small outputs inlined where asked.

The digest need not be that of an Action in the store: moon keeps results under digests of its own. Whether all blobs of a
result exist is looked after by the action cache itself (`Complete`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cas.action_cache import ActionKey
from cas.context import RequestContext
from cas.digest import Digest, function_for
from cas.errors import MalformedRequest, NotAllowed
from cas.hashing import DigestFunction
from cas.instances import Instances
from cas.services.fields import digest_field
from cas.store import BlobStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MAX_RESULT_BYTES: Final = 3 << 20
"""One encoded action result. With MAX_INLINE_BYTES on top it still fits the 4 MiB that every client receives."""

MAX_INLINE_BYTES: Final = 768 << 10
"""Outputs inlined into one result, together. Inlining is a hint that may be ignored (REAPI, GetActionResultRequest); what
does not fit is fetched by the client as if it had not asked."""


class ActionCacheService:
    """build.bazel.remote.execution.v2.ActionCache."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    async def GetActionResult(
        self, request: re_pb2.GetActionResultRequest, context: RequestContext
    ) -> re_pb2.ActionResult:
        """The result of an action. Raises ActionResultNotFound, also where one of its blobs is gone."""
        instance = self._instances.readable(request.instance_name, context.identity)
        digest = digest_field(request.action_digest, "action_digest", function_for(request.digest_function))
        result = await instance.action_cache.get(ActionKey(instance.name, digest))
        if request.inline_stdout or request.inline_stderr or request.inline_output_files:
            await _inline(instance.store, result, request, digest.function)
        result.execution_metadata.SetInParent()  # Buck2 takes a result without one for broken
        return result

    async def UpdateActionResult(
        self, request: re_pb2.UpdateActionResultRequest, context: RequestContext
    ) -> re_pb2.ActionResult:
        """Keep a result. Raises NotAllowed, and MalformedRequest for a result with paths or digests that are none.

        A result without any output is kept: an action may be run for its exit code alone.
        """
        if not context.identity.may_update_action_cache:
            raise NotAllowed("not allowed")
        instance = self._instances.readable(request.instance_name, context.identity)
        digest = digest_field(request.action_digest, "action_digest", function_for(request.digest_function))
        if not request.HasField("action_result"):
            raise MalformedRequest("action_result is not set")
        result = request.action_result
        check_result(result, digest.function)
        await instance.action_cache.put(ActionKey(instance.name, digest), result)
        return result


def check_result(result: re_pb2.ActionResult, function: DigestFunction) -> None:
    """Raises MalformedRequest for a result with a wrong digest or path, or one that is too large to be sent."""
    if result.ByteSize() > MAX_RESULT_BYTES:
        raise MalformedRequest(f"action_result has {result.ByteSize()} bytes; {MAX_RESULT_BYTES} is the most")
    for place, file in enumerate(result.output_files):
        if not file.path:
            raise MalformedRequest(f"output_files[{place}] has no path")
        digest_field(file.digest, f"output_files[{place}].digest", function)
    for place, directory in enumerate(result.output_directories):
        # The path may be empty: the working directory itself is an output then.
        if not (directory.HasField("tree_digest") or directory.HasField("root_directory_digest")):
            raise MalformedRequest(f"output_directories[{place}] has neither tree_digest nor root_directory_digest")
        if directory.HasField("tree_digest"):
            digest_field(directory.tree_digest, f"output_directories[{place}].tree_digest", function)
        if directory.HasField("root_directory_digest"):
            digest_field(
                directory.root_directory_digest, f"output_directories[{place}].root_directory_digest", function
            )
    for field, symlinks in (
        ("output_symlinks", result.output_symlinks),
        ("output_file_symlinks", result.output_file_symlinks),
        ("output_directory_symlinks", result.output_directory_symlinks),
    ):
        for place, symlink in enumerate(symlinks):
            if not symlink.path or not symlink.target:
                raise MalformedRequest(f"{field}[{place}] has no {'target' if symlink.path else 'path'}")
    for field in ("stdout_digest", "stderr_digest"):
        if result.HasField(field):
            digest_field(getattr(result, field), field, function)


async def _inline(
    store: BlobStore, result: re_pb2.ActionResult, request: re_pb2.GetActionResultRequest, function: DigestFunction
) -> None:
    """Put the bytes that were asked for into `result`, the first ones asked for that fit MAX_INLINE_BYTES."""
    left_bytes = MAX_INLINE_BYTES
    chosen: list[tuple[re_pb2.OutputFile | str, Digest]] = []
    for place, digest in _asked(result, request, function):
        if digest.size_bytes <= left_bytes:
            left_bytes -= digest.size_bytes
            chosen.append((place, digest))
    blobs = await store.read_many(list({digest: None for _place, digest in chosen})) if chosen else {}
    for place, digest in chosen:
        data = blobs.get(digest)
        if data is None:
            continue  # gone since the result was checked; the client finds out when he fetches it
        if isinstance(place, re_pb2.OutputFile):
            place.contents = data
        else:
            setattr(result, place, data)


def _asked(
    result: re_pb2.ActionResult, request: re_pb2.GetActionResultRequest, function: DigestFunction
) -> Iterator[tuple[re_pb2.OutputFile | str, Digest]]:
    """What the request wants inlined and is not: the field of the result or the output file it goes to, and its digest."""
    if request.inline_stdout and result.HasField("stdout_digest") and not result.stdout_raw:
        yield "stdout_raw", Digest.from_proto(result.stdout_digest, function)
    if request.inline_stderr and result.HasField("stderr_digest") and not result.stderr_raw:
        yield "stderr_raw", Digest.from_proto(result.stderr_digest, function)
    if request.inline_output_files:
        wanted = set(request.inline_output_files)
        for file in result.output_files:
            if file.path in wanted and not file.contents:
                yield file, Digest.from_proto(file.digest, function)
