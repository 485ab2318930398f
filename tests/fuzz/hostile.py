"""How much is tried, and what hostile values look like.

A test of this folder tries a little, and the same each time. By hand as much as one likes, different each time:

    REXEC_FUZZ_EXAMPLES=100000 pytest tests/fuzz
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cas.digest import EMPTY, Digest

EXAMPLES: Final = int(os.environ.get("REXEC_FUZZ_EXAMPLES", "0"))
"""Examples for each test of a long run; 0 is the short one."""


def examples(number: int) -> settings:
    """The settings of a test that tries so many examples in a short run."""
    return settings(
        max_examples=EXAMPLES or number,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,  # the machine may be busy; what hangs is stopped by `guarded`
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def guarded(seconds: int = 30) -> Iterator[None]:
    """A block that is interrupted, wherever it hangs. Nothing is measured with it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


HELD: Final = b"a blob that the store has"
_HASH: Final = "0123456789abcdef" * 4

TEXTS: Final = st.one_of(
    st.sampled_from(
        [
            "",
            ".",
            "..",
            "/",
            "a",
            "a/b",
            "../x",
            "/etc",
            "a/../..",
            "a//b",
            "a/",
            "\0",
            "a\0b",
            "\n",
            "=",
            "%s%n",
            "main",
        ]
    ),
    st.sampled_from(["x" * 10_000, "ä" * 5_000, "漢" * 3_000, "/".join(["d"] * 3_000), "\U0010ffff", "-1", "NaN"]),
    st.text(max_size=20),
)
NUMBERS: Final = st.one_of(
    st.sampled_from([0, 1, -1, len(HELD), 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1]),
    st.integers(-10, 10_000),
)
DIGESTS: Final = st.one_of(
    st.sampled_from([Digest.of(HELD), *EMPTY.values()]).map(lambda digest: (digest.hash, digest.size_bytes)),
    st.tuples(st.sampled_from([_HASH, _HASH[:40], _HASH[:-1], _HASH.upper(), "", "../../x", "ä" * 64]), NUMBERS),
)
PRIMITIVES: Final = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_ENUM: st.sampled_from([0, 1, 2, 3, 8, 9, 10, 99, -1]),
}


AnyMessage = TypeVar("AnyMessage", bound=Message)


@st.composite
def messages(draw: st.DrawFn, kind: type[AnyMessage], depth: int = 0) -> AnyMessage:
    """Messages of this kind with any fields set to anything that fits their type."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if depth > 3 or not draw(st.booleans()):
            continue
        for _ in range(draw(st.integers(1, 3)) if field.is_repeated else 1):
            _set(draw, message, field, depth)
    return message


def _set(draw: st.DrawFn, message: Message, field: Any, depth: int) -> None:
    if field.message_type is not None:
        held = getattr(message, field.name)
        if field.message_type.GetOptions().map_entry:
            return
        child = held.add() if field.is_repeated else held
        if field.message_type.name == "Digest":
            child.hash, size_bytes = draw(DIGESTS)
            child.size_bytes = max(-(2**63), min(2**63 - 1, size_bytes))
        else:
            child.SetInParent()
            child.MergeFrom(draw(messages(type(child), depth + 1)))
        return
    if field.type == FieldDescriptor.TYPE_BYTES:
        value: object = draw(st.binary(max_size=30))
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        value = draw(TEXTS)
    else:
        value = draw(PRIMITIVES.get(field.cpp_type, NUMBERS))
    try:
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    except ValueError:
        pass  # a number that the field cannot hold does not come over the wire either
