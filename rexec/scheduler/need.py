"""What tasks take up of a worker, as values: before it is known which worker, and on one."""

from __future__ import annotations

from functools import lru_cache

import msgspec

MAX_MEMORY_BYTES = 1 << 50
"""1 PiB."""

_LEAST_EXPECTED_BYTES = 512 << 20
"""Less has room in any slot, and is not told apart."""


class Need(msgspec.Struct, frozen=True, cache_hash=True):
    """What tasks that wait together take up of a worker."""

    slots: int = 1
    cpu_millis: int = 0
    """Thousandths of a core; 0 is what its slots stand for."""
    memory_bytes: int = 0
    """0 is what its slots stand for."""
    expected_memory_bytes: int = 0
    """What they have been seen to take, if they do not say; rounded up, so that there are few different ones."""

    def __str__(self) -> str:
        figures = [] if self.slots == 1 else [f"slots={self.slots}"]
        if self.cpu_millis:
            figures.append(f"cpu={self.cpu_millis / 1000:g}")
        if self.memory_bytes or self.expected_memory_bytes:
            figures.append(f"memory={readable(self.memory_bytes or self.expected_memory_bytes)}")
        return ", ".join(figures) or "one slot"


PLAIN = Need()


class Use(msgspec.Struct, frozen=True):
    """What one lease takes up of its worker."""

    slots: int
    cpu_millis: int
    memory_bytes: int
    share_millis: int
    """The same in thousandths of a slot: of slots, cores and memory the one that it takes most of."""
    plain: bool
    """Whether it is what one slot stands for on that worker."""


@lru_cache(maxsize=1024)
def need_of(slots: int, cpu_millis: int, memory_bytes: int, expected_memory_bytes: int = 0) -> Need:
    """The need of an action that asks for these. What is expected of its memory counts if it does not say."""
    expected = 0
    if not memory_bytes and expected_memory_bytes >= _LEAST_EXPECTED_BYTES:
        expected = stepped(min(expected_memory_bytes, MAX_MEMORY_BYTES))
    return Need(max(1, slots), cpu_millis, memory_bytes, expected)


def stepped(size_bytes: int) -> int:
    """The same or a little more, 1 or more, in steps of about 40 %: tasks of different needs stand in different lines."""
    octave = 1 << (size_bytes.bit_length() - 1)
    return next(size for size in (octave, octave * 3 // 2, octave * 2) if size >= size_bytes)


def readable(size_bytes: int) -> str:
    """A size for a person."""
    return f"{size_bytes / (1 << 30):.3g}GiB" if size_bytes >= 1 << 30 else f"{size_bytes / (1 << 20):.3g}MiB"
