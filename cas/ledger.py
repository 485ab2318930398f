"""What a bounded store holds, in order of last use, and which blobs must go to make room: decisions only, no I/O.

Room is reserved before a blob is written and becomes the blob's when it is whole, so the blobs held and the writes under
way never pass the bound together. `charge` turns a blob's size into the room that it really takes, because a store of
very many tiny blobs is limited by what each costs beside its content.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Iterator

from cas.digest import Digest
from cas.errors import StoreFull

STAMP_SECONDS = 3600.0
"""How far the recorded time of last use may fall behind: recording costs a write, and order within an hour hardly matters."""


class Entry:
    """One blob that the store holds. A blob that was forgotten and written again has another entry."""

    __slots__ = ("stamped_at",)

    def __init__(self, stamped_at: float) -> None:
        self.stamped_at = stamped_at


class Ledger:
    """The blobs of one store by last use, bounded by the room they take. Not thread-safe: it belongs to the event loop."""

    def __init__(self, max_bytes: int, charge: Callable[[int], int]) -> None:
        if max_bytes <= 0:
            raise ValueError(f"max_bytes is {max_bytes}; a store needs room for at least one byte")
        self.max_bytes = max_bytes
        self.charge = charge
        self.used_bytes = 0
        """Charged for the blobs held."""
        self.reserved_bytes = 0
        """Charged for the writes under way."""
        self.stale: list[Digest] = []
        """Blobs whose recorded time of last use should be renewed; taken by a store that records it."""
        self.spares: Callable[[Digest, Entry], bool] | None = None
        """Asked before a blob is forgotten to make room: whether it was used by someone else since. It has then renewed
        `stamped_at`, so that it does not say so again."""
        self._entries: OrderedDict[Digest, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Digest]:
        return iter(self._entries)

    def __contains__(self, digest: Digest) -> bool:
        return digest in self._entries

    def touch(self, digest: Digest, now: float) -> Entry | None:
        """The entry of `digest`, which counts as used now; None if it is not held."""
        entry = self._entries.get(digest)
        if entry is not None:
            self._entries.move_to_end(digest)
            if now - entry.stamped_at > STAMP_SECONDS:
                entry.stamped_at = now
                self.stale.append(digest)
        return entry

    def find_missing(self, digests: Iterable[Digest], now: float) -> set[Digest]:
        """Those of `digests` that are not held; the others count as used now."""
        # Written out: this is the hot loop of FindMissingBlobs.
        missing = set()
        get, move_to_end = self._entries.get, self._entries.move_to_end
        for digest in digests:
            entry = get(digest)
            if entry is None:
                missing.add(digest)
                continue
            move_to_end(digest)
            if now - entry.stamped_at > STAMP_SECONDS:
                entry.stamped_at = now
                self.stale.append(digest)
        return missing

    def require_room(self, digest: Digest) -> None:
        """Raises StoreFull if `digest` could not be held even alone."""
        if self.charge(digest.size_bytes) > self.max_bytes:
            raise StoreFull(
                f"blob {digest} can never fit: the store holds at most {self.max_bytes} bytes "
                "([store] max_bytes of the server)"
            )

    def reserve(self, amount_bytes: int, held: Container[Digest] = ()) -> list[Digest]:
        """Set `amount_bytes` of room aside. Returns the blobs that are forgotten for it, oldest first; their bytes must go
        before others are written. Those in `held` stay.

        Raises StoreFull, and forgets nothing, if the writes under way and what is held leave too little.
        """
        if self.reserved_bytes + amount_bytes > self.max_bytes:
            raise StoreFull(
                f"no room for {amount_bytes} bytes: writes under way hold {self.reserved_bytes} of {self.max_bytes} bytes "
                "([store] max_bytes of the server)"
            )
        victims = self._oldest(self.used_bytes + self.reserved_bytes + amount_bytes - self.max_bytes, held)
        self.reserved_bytes += amount_bytes
        self._forget_all(victims)
        return victims

    def evict(self) -> list[Digest]:
        """Forget the blobs used longest ago until the bound is kept; returns them."""
        victims = self._oldest(self.used_bytes + self.reserved_bytes - self.max_bytes, ())
        self._forget_all(victims)
        return victims

    def _oldest(self, wanted_bytes: int, held: Container[Digest]) -> list[Digest]:
        """Those used longest ago that take `wanted_bytes` together, or little more. Raises StoreFull if `held` has too many."""
        victims: list[Digest] = []
        if wanted_bytes <= 0:
            return victims
        spared: list[Digest] = []
        for digest, entry in self._entries.items():
            if digest in held:
                continue
            if self.spares is not None and self.spares(digest, entry):
                spared.append(digest)
                continue
            victims.append(digest)
            wanted_bytes -= self.charge(digest.size_bytes)
            if wanted_bytes <= 0:
                break
        for digest in spared:
            self._entries.move_to_end(digest)
        if wanted_bytes <= 0:
            return victims
        if spared:
            # Everything else is not enough, so they go after all, the one used longest ago first.
            for digest in spared:
                victims.append(digest)
                wanted_bytes -= self.charge(digest.size_bytes)
                if wanted_bytes <= 0:
                    return victims
        raise StoreFull(
            f"the blobs of one batch do not fit together: the store holds at most {self.max_bytes} bytes "
            "([store] max_bytes of the server)"
        )

    def _forget_all(self, digests: Iterable[Digest]) -> None:
        for digest in digests:
            del self._entries[digest]
            self.used_bytes -= self.charge(digest.size_bytes)

    def release(self, amount_bytes: int) -> None:
        """Give reserved room back."""
        self.reserved_bytes -= amount_bytes

    def keep(self, digest: Digest, now: float) -> None:
        """A blob that room was reserved for is whole now."""
        self.reserved_bytes -= self.charge(digest.size_bytes)
        self.add(digest, now)

    def add(self, digest: Digest, stamped_at: float) -> None:
        """A blob is held, as the most recently used, without room having been reserved."""
        self._entries[digest] = Entry(stamped_at)
        self.used_bytes += self.charge(digest.size_bytes)

    def forget(self, digest: Digest, entry: Entry) -> bool:
        """Drop a blob that turned out damaged, unless it has been written anew since `entry` was looked up."""
        if self._entries.get(digest) is not entry:
            return False
        del self._entries[digest]
        self.used_bytes -= self.charge(digest.size_bytes)
        return True

    def take_stale(self) -> list[Digest]:
        """The blobs whose time of last use should be recorded, once each."""
        stale, self.stale = list(dict.fromkeys(self.stale)), []
        return stale
