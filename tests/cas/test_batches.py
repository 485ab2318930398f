"""batches: bounded in bytes and in number, in order, nothing lost."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cas.batches import batches
from cas.digest import Digest


@given(st.lists(st.integers(0, 30)), st.integers(1, 40), st.integers(1, 5))
def test_every_batch_keeps_its_bounds_and_takes_what_fits(sizes: list[int], max_bytes: int, max_blobs: int) -> None:
    digests = [Digest(f"{number:064x}", size_bytes) for number, size_bytes in enumerate(sizes)]
    groups = list(batches(digests, max_bytes, max_blobs))
    assert [digest for group in groups for digest in group] == digests
    for group in groups:
        assert 1 <= len(group) <= max_blobs
        assert len(group) == 1 or sum(digest.size_bytes for digest in group) <= max_bytes
    for group, following in itertools.pairwise(groups):
        full = len(group) == max_blobs
        assert full or sum(digest.size_bytes for digest in [*group, following[0]]) > max_bytes
