"""What the change time of a file or directory proves (st_ctime, inode(7)).

The kernel sets it with every change, of bytes, mode, times, links and entries, and nobody can set it to a value of his choice. So
what still has the change time of an earlier look is as it was then, if that time was a while ago at that look.
"""

from __future__ import annotations

from typing import Final

RACY_NS: Final = 20_000_000
"""A change time so close to the look says nothing: many file systems take it from a clock that moves every 10 ms, so a later
change may carry the same time."""


def tells_all(changed_ns: int, looked_ns: int) -> bool:
    """Whether every change after `looked_ns`, by the wall clock, gives another change time than `changed_ns`, seen since then."""
    # Whole seconds: a file system that notes no more than that.
    return changed_ns < looked_ns - RACY_NS and changed_ns % 1_000_000_000 != 0
