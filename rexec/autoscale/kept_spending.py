"""What was spent, over the life of a process: read at its start, kept now and then and at its end."""

from __future__ import annotations

from typing import Final

import structlog

from rexec.autoscale.clock import Clock
from rexec.autoscale.ledger import LedgerStore, LedgerUnusable
from rexec.autoscale.spending import Spending

log = structlog.get_logger()

KEEP_SECONDS: Final = 60.0


class KeptSpending:
    """Spending, and the store it is kept in. A store that fails stops nothing: until it can be read what is spent is counted from
    now on, and nothing is kept in the place of what it has."""

    def __init__(self, store: LedgerStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.now = Spending(clock.wall())
        self._is_read = False

    async def read(self) -> None:
        """Go on from what was kept, unless that has been read."""
        if self._is_read:
            return
        try:
            text = await self._store.load()
            self._is_read = True
            if text:
                self.now = Spending.from_text(text, self._clock.wall()).with_more(self.now)
        except (LedgerUnusable, ValueError) as error:
            log.warning("what was spent today is not known, and counted from now on", why=str(error))

    async def keep(self) -> None:
        """Keep it until cancelled, and once more then."""
        kept = ""
        try:
            while True:
                await self._clock.sleep(KEEP_SECONDS)
                kept = await self._save(kept)
        finally:
            await self._save(kept)

    async def _save(self, kept: str) -> str:
        """Keep what has changed; returns what is kept now."""
        if not self._is_read:
            await self.read()
            if not self._is_read:
                return kept
        text = self.now.to_text()
        if text == kept:
            return kept
        try:
            await self._store.save(text)
        except LedgerUnusable as error:
            log.warning("what was spent today cannot be kept", why=str(error))
            return kept
        return text
