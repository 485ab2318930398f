"""A file that is read again when it changes: keys and tokens are replaced while the server runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

log = structlog.get_logger()

T = TypeVar("T")

LOOK_SECONDS = 1.0
"""The time between two looks at the file; a look is a stat."""

MAX_FILE_BYTES = 16 << 20
"""More is no list of tokens or keys."""

Mark = tuple[int, int, int, int]


class WatchedFile(Generic[T]):
    """What `parse` makes of the file at `path`, as it is now.

    A change that cannot be read or parsed is logged, and what was there before stays in force: half of an edit must lock
    nobody out. `parse` raises ValueError, with a text that is fit for the log.
    """

    def __init__(
        self, path: Path, parse: Callable[[bytes], T], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        """Reads the file. Raises OSError and ValueError."""
        self.path = path
        self._parse = parse
        self._monotonic = monotonic
        self._mark = mark_of(path)
        self._value = parse(_read(path))
        self._look_at = monotonic() + LOOK_SECONDS

    def value(self) -> T:
        """The value, at most LOOK_SECONDS old; the same object while the file stays as it is."""
        now = self._monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            self._look()
        return self._value

    def _look(self) -> None:
        mark = mark_of(self.path)
        if mark == self._mark:
            return
        # Noted first: a file that is wrong is complained of once, not once a second.
        self._mark = mark
        try:
            self._value = self._parse(_read(self.path))
        except (OSError, ValueError) as error:
            log.warning(
                "changed file not used, what it held before still counts", file=str(self.path), reason=str(error)
            )
            return
        log.info("changed file read", file=str(self.path))


def mark_of(path: Path) -> Mark | None:
    """What differs once the file has been changed or replaced; None if it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"is larger than {MAX_FILE_BYTES} bytes")
    return data
