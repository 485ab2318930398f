"""Many blobs in few calls, none of which takes too many at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cas.digest import Digest


def batches(digests: Iterable[Digest], max_bytes: int, max_blobs: int) -> Iterator[list[Digest]]:
    """`digests` in order, in groups of at most `max_bytes` declared bytes (or one blob) and `max_blobs` blobs."""
    group: list[Digest] = []
    group_bytes = 0
    for digest in digests:
        if group and (group_bytes + digest.size_bytes > max_bytes or len(group) >= max_blobs):
            yield group
            group, group_bytes = [], 0
        group.append(digest)
        group_bytes += digest.size_bytes
    if group:
        yield group
