"""Rooms whose input roots are kept for the next action: mostly it needs nearly the same.

A room is kept when its action has ended in good order and its inputs are intact. At most one is kept for each place that an
action can have, the oldest goes first. The next action takes the one that shares most with it, if that is half of what it needs;
else it gets an empty room, and what is kept stays for others.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Final

from cas.digest import Digest
from rexec.worker.blob_files import FileKey
from rexec.worker.bundle import Bundle
from rexec.worker.layout import CannotReuse, Layout, repair
from rexec.worker.workspace import Room, Workspace

LEAST_FILES: Final = 8
"""An input root of fewer is made as fast as it is looked at."""

_SAMPLE_FILES: Final = 64
"""Looked at to see how much a room shares with an action, of the files in directories that it does not have as they are."""

LEAST_FREE_BYTES: Final = 1 << 30
"""With less room on the disk nothing is kept: an action may have left anything beside its inputs."""


class KeptRooms:
    """Those of one agent. Lives on the event loop; every call takes microseconds, or little more."""

    def __init__(self, workspace: Workspace, max_rooms: int) -> None:
        self._workspace = workspace
        self._max_rooms = max_rooms
        self._kept: list[tuple[Room, Layout]] = []

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, bundles: Mapping[Digest | None, Bundle]) -> tuple[Room, Layout] | None:
        """A room to start from for an action that needs these files; it is the caller's from now on."""
        names = sum([len(bundle.keys) for bundle in bundles.values()])
        if names < LEAST_FILES:
            return None
        most, best = 0.0, -1
        for number in reversed(range(len(self._kept))):
            shared = _shared(bundles, names, self._kept[number][1])
            if shared > most:
                most, best = shared, number
        return self._kept.pop(best) if most >= names // 2 else None

    def keep(self, room: Room, layout: Layout | None) -> None:
        """An action has ended in a room; None if its input root is of no more use. No process may be left in it."""
        if (
            layout is None
            or self._max_rooms < 1
            or layout.names < LEAST_FILES
            or self._workspace.free_bytes() < LEAST_FREE_BYTES
            or not self._stripped(room)
        ):
            self._workspace.discard(room)
            return
        self._kept.append((room, layout))
        if len(self._kept) > self._max_rooms:
            self._workspace.discard(self._kept.pop(0)[0])

    def drop_those_with(self, files: Sequence[FileKey]) -> None:
        """Give up the rooms that hold links to files that the cache has deleted: they would take room that nobody counts. What is
        deleted was not used for longest, and neither was such a room."""
        for number in reversed(range(len(self._kept))):
            room, layout = self._kept[number]
            # A bundle keeps its files until it is dissolved.
            if any(bundle.is_dissolved and not bundle.keys.isdisjoint(files) for bundle in layout.bundles.values()):
                del self._kept[number]
                self._workspace.discard(room)

    def drop_all(self) -> None:
        """Give up what is kept, for instance because the disk is full."""
        while self._kept:
            self._workspace.discard(self._kept.pop()[0])

    def _stripped(self, room: Room) -> bool:
        """Take away everything in the room but its input root, and give it an empty TMPDIR; False if that is not possible."""
        try:
            if not stat.S_ISDIR(os.lstat(room.path).st_mode):
                return False
            repair(room.path)
            for name in os.listdir(room.path):
                path = f"{room.path}/{name}"
                if path != room.root:
                    self._workspace.scrap(path)
            os.mkdir(room.tmp)
        except (OSError, CannotReuse):
            return False
        return True


def _shared(bundles: Mapping[Digest | None, Bundle], names: int, layout: Layout) -> float:
    """How many of the files, `names` in all, a room has, as far as is seen at a glance."""
    known = layout.bundles
    shared = sum([len(bundle.keys) for name, bundle in bundles.items() if name in known])
    if shared >= names // 2:
        return shared
    others = [bundle.keys for name, bundle in bundles.items() if name not in known]
    sample = set(islice(chain.from_iterable(others), _SAMPLE_FILES))
    found: set[FileKey] = set()
    for bundle in known.values():
        found |= sample & bundle.keys
    return shared + (names - shared) * len(found) / len(sample)
