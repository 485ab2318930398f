"""The worker's file cache: which blobs are on its disk, which of them are in use, and which go when room is needed.

Whoever lays out an input root holds all its files first (`hold`). Holding is all or nothing: what is there is pinned and
room for the rest is reserved in one step without an await, so two actions can never each hold half of the disk and wait
for the other. A blob that two actions want at once is fetched once. What nobody holds leaves in the order of last use.

The index lives on the event loop; files are written in threads (`BlobFiles`). Deleting is done on the loop on purpose: an
unlink takes about 20 us, less than the hop to a thread, and a name that is deleted later could be a new file's by then.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import TracebackType

import structlog

from cas.cancellation import to_the_end
from cas.digest import Digest
from cas.errors import InputsMissing, ResourceExhausted
from cas.store import BlobStore
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.fetch import fetch

_log = structlog.get_logger()


class InputsTooLarge(ResourceExhausted):
    """The files of one input root are larger than the whole cache: no waiting helps."""


class _Entry:
    """One file on the disk. The same key has another entry once the file was forgotten and fetched again."""

    __slots__ = ("is_forgotten", "is_spoilt", "pins")

    def __init__(self, pins: int) -> None:
        self.pins = pins
        self.is_forgotten = False
        """It is not in the cache any more; whoever holds it keeps his links."""
        self.is_spoilt = False
        """It was changed while several held it."""


class _Arrival:
    """A blob that somebody is fetching."""

    __slots__ = ("done", "entry", "pins")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.pins = 1
        """How many hold it once it is there."""
        self.entry: _Entry | None = None
        """What came of it; None if nothing did."""


class Hold:
    """Files that stay while this is open; a context manager."""

    def __init__(self, cache: FileCache, held: Mapping[FileKey, _Entry]) -> None:
        self._cache = cache
        self._held = held

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()

    @property
    def entries(self) -> Mapping[FileKey, object]:
        """What the cache knows each file by: the same object as long as it is the same file, also for later holds."""
        return self._held

    def forget(self, changed: Iterable[FileKey]) -> int:
        """Drop those of the files that were changed. Returns how many files of this hold have been changed, now or before,
        while another hold had them too: of each, somebody may have read what it does not stand for."""
        for key in changed:
            entry = self._held[key]
            if not entry.is_forgotten:
                entry.is_spoilt = entry.pins > 1
                self._cache.forget([key])
        return sum(entry.is_spoilt for entry in self._held.values())

    def release(self) -> None:
        """Let the files go; a second call does nothing."""
        held, self._held = self._held, {}
        self._cache._unpin(held)


class FileCache:
    """Files by digest and executable bit, at most `max_bytes` of them, in one directory."""

    def __init__(self, files: BlobFiles, max_bytes: int) -> None:
        self.files = files
        self.max_bytes = max_bytes
        self._entries: OrderedDict[FileKey, _Entry] = OrderedDict()
        self._arriving: dict[FileKey, _Arrival] = {}
        self._used_bytes = 0
        self._pinned_bytes = 0
        """Of the used bytes, those that somebody holds."""
        self._reserved_bytes = 0
        """For files on their way; not among the used bytes yet."""
        self._released = asyncio.Event()
        self.evicted: Callable[[Sequence[FileKey]], None] = lambda _keys: None
        """Told of files that were deleted for want of room; who has links to them should let them go."""

    @property
    def used_bytes(self) -> int:
        """Sum of the sizes of all files that are whole."""
        return self._used_bytes

    def __contains__(self, key: FileKey) -> bool:
        return key in self._entries

    async def adopt(self) -> None:
        """Take over what an earlier agent left in the directory. Called once, before anything else."""

        def scan() -> list[FileKey]:
            self.files.open_root()
            return self.files.scan()

        for key in await asyncio.to_thread(scan):
            self._entries[key] = _Entry(0)
            self._used_bytes += key.digest.size_bytes
        self._evict(0)
        if self._entries:
            _log.info("took over cached files", files=len(self._entries), bytes=self._used_bytes)

    async def hold(self, keys: Iterable[FileKey], store: BlobStore) -> Hold:
        """Have all files on disk and keep them there until the answer is released.

        Waits while files that others hold leave no room. Raises InputsMissing with every blob that the store does not have,
        InputsTooLarge if the files together are larger than the cache, DigestMismatch if the store gives wrong bytes,
        what the store raises, and OSError if the disk is full.
        """
        wanted = set(keys)
        total_bytes = sum([key.digest.size_bytes for key in wanted])
        if total_bytes > self.max_bytes:
            raise InputsTooLarge(
                f"the input files take {total_bytes} bytes; this worker keeps at most {self.max_bytes} ([worker] cache_max_bytes)"
            )
        while True:
            absent = [key for key in wanted if key not in self._entries]
            mine = [key for key in absent if key not in self._arriving]
            others = [(key, self._arriving[key]) for key in absent if key in self._arriving]
            present = wanted.difference(absent) if absent else wanted
            if not self._reserve(mine, present):
                self._released.clear()
                await self._released.wait()
                continue
            held = {key: self._entries[key] for key in present}
            for _, arrival in others:
                arrival.pins += 1
            try:
                await self._fetch(mine, store)
            except BaseException:
                self._unpin(held)
                self._let_go(others)
                raise
            held.update((key, self._entries[key]) for key in mine)
            try:
                for _, arrival in others:
                    await asyncio.shield(arrival.done)
            except BaseException:
                self._unpin(held)
                self._let_go(others)
                raise
            held.update((key, arrival.entry) for key, arrival in others if arrival.entry is not None)
            if len(held) == len(wanted) and not any(entry.is_forgotten for entry in held.values()):
                return Hold(self, held)
            # Whoever fetched some of it failed, or it was forgotten meanwhile. Let everything go and start over: to wait
            # for room while holding something is how two actions would block each other.
            self._unpin(held)

    async def take(self, files: Sequence[tuple[FileKey, str]]) -> None:
        """Move files (paths by what they hold) into the cache as far as there is room; what does not fit stays behind.

        For outputs: the next action often reads them. Their bytes must be known to match, and no process may have them open.
        """
        taken: dict[FileKey, str] = {}
        for key, path in files:
            if key not in self._entries and key not in self._arriving and key not in taken and self._reserve([key]):
                taken[key] = path
        if not taken:
            return

        moved: list[FileKey] = []

        def move() -> None:
            for key, path in taken.items():
                try:
                    self.files.take(key, path)
                except OSError as failure:
                    _log.warning("could not keep an output", path=path, failure=str(failure))
                else:
                    moved.append(key)

        try:
            await to_the_end(asyncio.to_thread(move))
        finally:
            # Also when the call is cancelled: what the thread has moved is here.
            self._arrived(taken, moved, pins=0)

    def forget(self, keys: Iterable[FileKey]) -> None:
        """Drop files that are not what they should be. Who holds them keeps his links, new actions get new files."""
        for key in keys:
            entry = self._entries.pop(key, None)
            if entry is not None:
                entry.is_forgotten = True
                self._used_bytes -= key.digest.size_bytes
                if entry.pins:
                    self._pinned_bytes -= key.digest.size_bytes
                self.files.remove(key)

    def give_back(self, size_bytes: int) -> None:
        """Delete what was not used for longest, that much of it as far as nobody holds it: the disk is short of room."""
        self._evict(self.max_bytes - self._used_bytes - self._reserved_bytes + size_bytes)

    async def _fetch(self, keys: Sequence[FileKey], store: BlobStore) -> None:
        """Fetch what was reserved; afterwards each key is an entry with its pins, or the room is given back."""
        if not keys:
            return
        siblings = {}
        for key in keys:
            sibling = FileKey(key.digest, not key.is_executable)
            if sibling in self._entries:
                siblings[key] = sibling
        arrived: list[FileKey] = []
        missing: set[Digest] = set()
        try:
            missing = await fetch(keys, store, self.files, siblings, arrived.append)
        except BaseException:
            self._arrived(keys, arrived)
            self._unpin({key: self._entries[key] for key in arrived})
            raise
        self._arrived(keys, arrived)
        if missing:
            self._unpin({key: self._entries[key] for key in arrived})
            raise InputsMissing(sorted(missing, key=lambda digest: digest.hash))

    def _reserve(self, keys: Sequence[FileKey], present: Collection[FileKey] = ()) -> bool:
        """Pin `present` and book room for `keys`, making some if needed; False, and nothing done, if what is held leaves
        too little."""
        needed = sum([key.digest.size_bytes for key in keys])
        if needed:
            to_pin = sum([key.digest.size_bytes for key in present if not self._entries[key].pins])
            if self._pinned_bytes + to_pin + self._reserved_bytes + needed > self.max_bytes:
                return False
        self._pin(present)
        self._evict(needed)
        self._reserved_bytes += needed
        loop = asyncio.get_running_loop()
        for key in keys:
            self._arriving[key] = _Arrival(loop.create_future())
        return True

    def _arrived(self, keys: Iterable[FileKey], arrived: Collection[FileKey], pins: int | None = None) -> None:
        """Turn reservations into entries, or into nothing, and wake those who wait for them."""
        whole = set(arrived)
        for key in keys:
            arrival = self._arriving.pop(key)
            self._reserved_bytes -= key.digest.size_bytes
            if key in whole:
                entry = arrival.entry = self._entries[key] = _Entry(arrival.pins - (1 if pins == 0 else 0))
                self._used_bytes += key.digest.size_bytes
                if entry.pins:
                    self._pinned_bytes += key.digest.size_bytes
            arrival.done.set_result(None)
        self._released.set()

    def _let_go(self, others: Iterable[tuple[FileKey, _Arrival]]) -> None:
        """Give up what somebody else fetches or has fetched."""
        for key, arrival in others:
            if not arrival.done.done():
                arrival.pins -= 1
            elif arrival.entry is not None:
                self._unpin({key: arrival.entry})

    def _pin(self, keys: Iterable[FileKey]) -> None:
        for key in keys:
            entry = self._entries[key]
            if not entry.pins:
                self._pinned_bytes += key.digest.size_bytes
            entry.pins += 1
            self._entries.move_to_end(key)

    def _unpin(self, held: Mapping[FileKey, _Entry]) -> None:
        for key, entry in held.items():
            entry.pins -= 1
            if not entry.pins and not entry.is_forgotten:
                self._pinned_bytes -= key.digest.size_bytes
        self._released.set()

    def _evict(self, needed_bytes: int) -> None:
        """Delete what was not used for longest until `needed_bytes` more fit."""
        excess = self._used_bytes + self._reserved_bytes + needed_bytes - self.max_bytes
        if excess <= 0:
            return
        victims = []
        for key, entry in self._entries.items():
            if not entry.pins:
                victims.append(key)
                excess -= key.digest.size_bytes
                if excess <= 0:
                    break
        self.forget(victims)
        self.evicted(victims)
