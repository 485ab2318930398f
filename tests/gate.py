"""Holding an action at a place in its script, without sleeping."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self


class Gate:
    """A named pipe: each `wait` of a script waits for one `open` of the test.

    The test holds both ends, so that neither side waits for the other to open it, nor sees an end.
    """

    def __init__(self, path: Path) -> None:
        self.wait = f"read x < {path}"
        """The shell command that waits."""
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR)

    def open(self) -> None:
        """Let one wait end."""
        os.write(self._fd, b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
