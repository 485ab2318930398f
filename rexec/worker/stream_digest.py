"""The digest of what an action printed."""

from __future__ import annotations

from cas.digest import Digest, DigestFunction, hasher
from rexec.worker.streams import CapturedStream

_PIECE_BYTES = 1 << 20


def digest_of_stream(stream: CapturedStream, function: DigestFunction) -> Digest:
    """Of a finished stream, in memory or in its file. Blocks."""
    if not stream.spilled:
        return Digest.of(stream.kept, function)
    started = hasher(function, stream.size_bytes)
    with open(stream.spill_path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            started.update(piece)
    return Digest(started.hexdigest(), stream.size_bytes, function)
