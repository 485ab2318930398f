"""Where the autoscaler remembers what it has spent, so that a restart does not begin a new day.

What is remembered is text that rexec/autoscale/spending.py makes and reads; here it is only kept.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol


class LedgerUnusable(Exception):
    """What was spent cannot be read or written now; the text says why, for people."""


class LedgerStore(Protocol):
    """One text that outlives the process."""

    async def load(self) -> str:
        """The text kept last; empty if there is none. Raises LedgerUnusable."""
        ...

    async def save(self, text: str) -> None:
        """Keep it in the place of the one before. Raises LedgerUnusable."""
        ...


class FileLedger:
    """In a file: of a server that has a state directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> str:
        """See LedgerStore."""
        try:
            return await asyncio.to_thread(self._path.read_text, "utf-8")
        except FileNotFoundError:
            return ""
        except (OSError, UnicodeDecodeError) as error:
            raise LedgerUnusable(f"{self._path} cannot be read: {error}") from error

    async def save(self, text: str) -> None:
        """See LedgerStore."""
        try:
            await asyncio.to_thread(self._write, text)
        except OSError as error:
            raise LedgerUnusable(f"{self._path} cannot be written: {error}") from error

    def _write(self, text: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)


class ForgottenLedger:
    """Nowhere: for an autoscaler that has no place of its own."""

    async def load(self) -> str:
        """See LedgerStore."""
        return ""

    async def save(self, text: str) -> None:
        """See LedgerStore."""
