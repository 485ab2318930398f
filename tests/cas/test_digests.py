"""Many digests at once are what they are one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import Digest, parse_digest, parse_digests
from cas.errors import MalformedRequest
from cas.hashing import DigestFunction
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

HASHES = st.one_of(
    st.sampled_from(["a" * 64, "0" * 64, "f" * 40, "A" * 64, "g" * 64, "a" * 63 + "\n", "٣" * 64, "ä" * 32, ""]),
    st.text("0123456789abcdef", min_size=64, max_size=64),
    st.text(max_size=70),
)
MESSAGES = st.lists(
    st.builds(re_pb2.Digest, hash=HASHES, size_bytes=st.one_of(st.just(1), st.integers(-(2**63), 2**63 - 1))),
    max_size=4,
)


@given(MESSAGES, st.sampled_from([None, *DigestFunction]))
def test_many_at_once_are_accepted_and_refused_as_one_by_one(
    messages: list[re_pb2.Digest], function: DigestFunction | None
) -> None:
    expected: list[Digest] = []
    refused = None
    for place, message in enumerate(messages):
        try:
            expected.append(parse_digest(message.hash, message.size_bytes, function))
        except MalformedRequest as wrong:
            refused = f"field[{7 + place}]: {wrong}"
            break
    if refused is None:
        assert parse_digests(messages, function, "field", 7) == expected
    else:
        with pytest.raises(MalformedRequest) as wrongs:
            parse_digests(messages, function, "field", 7)
        assert str(wrongs.value) == refused
