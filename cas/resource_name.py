"""The resource names of ByteStream: which blob, in which instance, compressed how.

    [{instance}/]blobs/[{function}/]{hash}/{size}                                             Read
    [{instance}/]compressed-blobs/{compressor}/[{function}/]{hash}/{size}                     Read
    [{instance}/]uploads/{uuid}/blobs/[{function}/]{hash}/{size}[/{anything}]                 Write
    [{instance}/]uploads/{uuid}/compressed-blobs/{compressor}/[{function}/]{hash}/{size}[/..] Write

(REAPI, ContentAddressableStorage.) The instance name may hold slashes, which is why it cannot hold the segments that the
rest is recognised by. An empty instance name is written with or without its slash: moon sends "/uploads/...".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cas.compression import Compressor, compressor_of_segment
from cas.digest import Digest, parse_digest
from cas.errors import MalformedRequest
from cas.hashing import function_of_length, function_of_segment

KEYWORDS: Final = frozenset(
    {"blobs", "uploads", "actions", "actionResults", "operations", "capabilities", "compressed-blobs"}
)
"""Segments that an instance name may not hold (REAPI, ContentAddressableStorage)."""

MAX_UUID_CHARACTERS: Final = 200
"""A UUID has 36; clients that put something else there are served too, but not with a key of any length."""

MAX_NAME_CHARACTERS: Final = 4_096
"""What follows the size of an upload is anything at all, so only the whole can be bounded."""

HEADER: Final = "build.bazel.remote.execution.v2.resource-name"
"""A header in which clients may repeat the resource name, so that proxies can route by it without reading the message."""


def check_header(headers: Mapping[str, str | bytes], resource_name: str) -> None:
    """Raises MalformedRequest if the header is there and names something else (REAPI, ContentAddressableStorage: it must
    match). A name that a header cannot carry as it is (RFC 9110: visible ASCII) is not compared."""
    repeated = headers.get(HEADER)
    if repeated is not None and repeated != resource_name and resource_name.isascii() and resource_name.isprintable():
        raise MalformedRequest(f"header {HEADER} says {str(repeated)[:200]!r}, the message {resource_name[:200]!r}")


@dataclass(frozen=True, slots=True)
class ResourceName:
    """A resource name that has been checked."""

    instance_name: str
    digest: Digest
    """Of the blob itself, whatever the compressor."""
    compressor: Compressor = Compressor.IDENTITY
    """What the bytes on the wire are compressed with."""
    uuid: str = ""
    """The client's name for one upload, "" in the name of a read."""


def parse_read_name(name: str) -> ResourceName:
    """The blob that a ReadRequest names. Raises MalformedRequest, which says what part is wrong."""
    segments, start = _split(name)
    if start == len(segments) or segments[start] == "uploads":
        raise MalformedRequest(f"resource name {name!r} has no segment 'blobs' or 'compressed-blobs'")
    compressor, digest, end = _blob(name, segments, start)
    if end != len(segments):
        raise MalformedRequest(f"resource name {name!r} goes on after the size")
    return ResourceName(_instance_name(name, segments, start), digest, compressor)


def parse_write_name(name: str) -> ResourceName:
    """The upload that a WriteRequest names. Raises MalformedRequest, which says what part is wrong."""
    segments, start = _split(name)
    if start == len(segments) or segments[start] != "uploads":
        raise MalformedRequest(f"resource name {name!r} of a write has no segment 'uploads'")
    uuid = segments[start + 1] if start + 1 < len(segments) else ""
    if not uuid or len(uuid) > MAX_UUID_CHARACTERS:
        raise MalformedRequest(
            f"resource name {name!r} has an upload id of {len(uuid)} characters; 1 to {MAX_UUID_CHARACTERS} were expected"
        )
    compressor, digest, _metadata = _blob(name, segments, start + 2)
    return ResourceName(_instance_name(name, segments, start), digest, compressor, uuid)


def _split(name: str) -> tuple[list[str], int]:
    """The segments and the place of the first keyword among them, their number if there is none."""
    if len(name) > MAX_NAME_CHARACTERS:
        raise MalformedRequest(
            f"resource name has {len(name)} characters; {MAX_NAME_CHARACTERS} is the most: {name[:200]!r}..."
        )
    segments = name.split("/")
    for place, segment in enumerate(segments):
        if segment in KEYWORDS:
            return segments, place
    return segments, len(segments)


def _instance_name(name: str, segments: list[str], end: int) -> str:
    """The instance name, which ends before the segment `end`."""
    if end == 0 or (end == 1 and not segments[0]):
        return ""
    if "" in segments[:end]:
        raise MalformedRequest(f"resource name {name!r} has an empty segment in its instance name")
    return "/".join(segments[:end])


def _blob(name: str, segments: list[str], start: int) -> tuple[Compressor, Digest, int]:
    """Compressor and digest, which begin at the segment `start`, and where they end."""
    kind = segments[start] if start < len(segments) else ""
    compressor = Compressor.IDENTITY
    place = start + 1
    if kind == "compressed-blobs":
        try:
            compressor = compressor_of_segment(segments[place] if place < len(segments) else "")
        except MalformedRequest as wrong:
            raise MalformedRequest(f"resource name {name!r}: {wrong}") from None
        place += 1
    elif kind != "blobs":
        raise MalformedRequest(f"resource name {name!r} has {kind!r} where 'blobs' or 'compressed-blobs' was expected")
    function = function_of_segment(segments[place]) if place < len(segments) else None
    if function is not None:
        place += 1
    elif place < len(segments) and function_of_length(len(segments[place])) is None:
        raise MalformedRequest(
            f"resource name {name!r} has {segments[place]!r} where a hash or a digest function was expected"
        )
    if place + 1 >= len(segments):
        raise MalformedRequest(f"resource name {name!r} has no hash and size after {kind!r}")
    try:
        digest = parse_digest(segments[place], _size(segments[place + 1]), function)
    except MalformedRequest as wrong:
        raise MalformedRequest(f"resource name {name!r}: {wrong}") from None
    return compressor, digest, place + 2


def _size(text: str) -> int:
    """A size in plain decimal digits; int() alone would take "+5", "5_0" and digits of other scripts too."""
    if not (text.isascii() and text.isdigit() and len(text) <= 19) or (text[0] == "0" and text != "0"):
        raise MalformedRequest(f"size {text[:200]!r} is not a decimal number of bytes")
    return int(text)
