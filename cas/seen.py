"""Which blobs a store far away was seen to have lately, so that it need not be asked for each of them again.

A build asks for the same toolchain thousands of times, and every question is a request to the store. Until when an answer
may be trusted is the caller's to say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from cas.digest import Digest

MAX_SEEN: Final = 300_000
"""Digests remembered: some 100 MB when full."""


class Seen:
    """Digests with a time each until which they count as present. The one used longest ago is forgotten first."""

    def __init__(self, clock: Callable[[], float], max_digests: int = MAX_SEEN) -> None:
        self._clock = clock
        self._max_digests = max_digests
        self._until: OrderedDict[Digest, float] = OrderedDict()

    def __contains__(self, digest: Digest) -> bool:
        until = self._until.get(digest)
        if until is None:
            return False
        if until <= self._clock():
            del self._until[digest]
            return False
        self._until.move_to_end(digest)
        return True

    def note(self, digest: Digest, until: float) -> None:
        """It counts as present until then, in the seconds of the clock."""
        self._until[digest] = until
        self._until.move_to_end(digest)
        if len(self._until) > self._max_digests:
            self._until.popitem(last=False)

    def forget(self, digest: Digest) -> None:
        """It has to be asked for again."""
        self._until.pop(digest, None)
