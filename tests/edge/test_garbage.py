"""Garbage is looked for rarely, and found all the same."""

from __future__ import annotations

import gc
import weakref

from rexec.garbage import THRESHOLDS, look_for_garbage_rarely


class Node:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def test_what_was_there_is_left_alone_and_later_cycles_are_found() -> None:
    before = gc.get_threshold()
    try:
        look_for_garbage_rarely()
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > 1000
        cycle = weakref.ref(Node())
        others = [[number] for number in range(10 * THRESHOLDS[0])]
        assert cycle() is None, f"not found among {len(others)} objects more"
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
