"""The worker's file cache: which blobs are on its disk, which of them are in use, and which go when room is needed.

Whoever lays out an input root holds all its files first (`hold`). Holding is all or nothing: what is there is pinned and
room for the rest is reserved in one step without an await, so two actions can never each hold half of the disk and wait
for the other. A blob that two actions want at once is fetched once.

The files of one directory are held as one (`Bundle`), so that an action like the last one costs by directories and not by files.
What nobody holds leaves in the order of last use (`FileIndex`). `Guard` finds the files that were changed.

The index lives on the event loop; files are written in threads (`BlobFiles`). Deleting is done on the loop on purpose: an
unlink takes about 20 us, less than the hop to a thread, and a name that is deleted later could be a new file's by then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import structlog

from cas.cancellation import to_the_end
from cas.digest import Digest
from cas.errors import InputsMissing, ResourceExhausted
from cas.store import BlobStore
from rexec.worker.blob_files import BlobFiles, FileKey
from rexec.worker.bundle import NEVER, Bundle, CachedFile
from rexec.worker.fetch import fetch
from rexec.worker.file_index import FileIndex
from rexec.worker.guard import Guard
from rexec.worker.hold import Hold
from rexec.worker.listing import Listing

_log = structlog.get_logger()


class InputsTooLarge(ResourceExhausted):
    """The files of one input root are larger than the whole cache: no waiting helps."""


class _Arrival:
    """A blob that somebody is fetching."""

    __slots__ = ("done", "file", "pins")

    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done
        self.pins = 1
        """How many hold it once it is there."""
        self.file: CachedFile | None = None
        """What came of it; None if nothing did."""


class FileCache:
    """Files by digest and executable bit, at most `max_bytes` of them, in one directory."""

    def __init__(self, files: BlobFiles, max_bytes: int, guard: Guard | None = None) -> None:
        self.files = files
        self.max_bytes = max_bytes
        self.guard = guard or Guard(files)
        self._index = FileIndex(self.guard.let_go)
        self._holds: set[Hold] = set()
        self._arriving: dict[FileKey, _Arrival] = {}
        self._reserved_bytes = 0
        """For files on their way; not among the used bytes yet."""
        self._released = asyncio.Event()
        self.evicted: Callable[[Sequence[FileKey]], None] = lambda _keys: None
        """Told of files that were deleted for want of room; who has links to them should let them go."""

    @property
    def used_bytes(self) -> int:
        """Sum of the sizes of all files that are whole."""
        return self._index.used_bytes

    def __contains__(self, key: FileKey) -> bool:
        return key in self._index.known

    async def adopt(self) -> None:
        """Take over what an earlier agent left in the directory. Called once, before anything else."""

        def scan() -> tuple[list[FileKey], bool]:
            self.files.open_root()
            return self.files.scan(), self.guard.open()

        keys, is_told = await asyncio.to_thread(scan)
        if not is_told:
            _log.info("changes to cached files are not told here, so all inputs are looked at after every action")
        for key in keys:
            file = CachedFile(key)
            # If that agent was killed, nobody looked at what its last actions did.
            file.changed_ns = NEVER
            self._index.add(file)
        self._evict(0)
        if self._index.known:
            _log.info("took over cached files", files=len(self._index.known), bytes=self._index.used_bytes)

    async def hold(self, keys: Iterable[FileKey], store: BlobStore) -> Hold:
        """Have these files on disk and keep them there until the answer is released. Waits and raises as `hold_directories`."""
        return await self._hold({None: frozenset(keys)}, store)

    async def hold_directories(self, listings: Mapping[Digest, Listing], store: BlobStore) -> Hold:
        """Have all files of the directories on disk and keep them there until the answer is released.

        Waits while files that others hold leave no room. Raises InputsMissing with every blob that the store does not have,
        InputsTooLarge if the files together are larger than the cache, DigestMismatch if the store gives wrong bytes,
        what the store raises, and OSError if the disk is full.
        """
        return await self._hold({name: listing.keys for name, listing in listings.items() if listing.keys}, store)

    async def _hold(self, wanted: Mapping[Digest | None, frozenset[FileKey]], store: BlobStore) -> Hold:
        self._require_fits(wanted)
        while True:
            self.forget_changed()
            bundles = [self._index.bundles[name] for name in wanted if name in self._index.bundles]
            loose = {name: keys for name, keys in wanted.items() if name not in self._index.bundles}
            for bundle in bundles:
                self._index.take(bundle)
            try:
                held = await self._hold_files(frozenset().union(*loose.values()), store) if loose else {}
            except BaseException:
                self._release(bundles)
                raise
            if held is None:
                self._release(bundles)
                self._released.clear()
                await self._released.wait()
                continue
            if any(file.is_forgotten for file in held.values()) or any(bundle.is_broken for bundle in bundles):
                # It was forgotten meanwhile. Let everything go and start over: to wait for room while holding something is
                # how two actions would block each other.
                self._release(bundles)
                self._unpin(held.values())
                continue
            for name, keys in loose.items():
                made = self._index.bundles.get(name) if name is not None else None
                if made is None:
                    made = self._index.make(name, keys, {key: held[key] for key in keys})
                else:  # by another hold meanwhile
                    self._index.take(made)
                bundles.append(made)
            self._unpin(held.values())
            hold = Hold(self, bundles)
            self._holds.add(hold)
            return hold

    def _require_fits(self, wanted: Mapping[Digest | None, frozenset[FileKey]]) -> None:
        known = [self._index.bundles.get(name) if name is not None else None for name in wanted]
        total_bytes = sum(
            [
                bundle.size_bytes if bundle is not None else sum([key.digest.size_bytes for key in keys])
                for bundle, keys in zip(known, wanted.values(), strict=True)
            ]
        )
        if total_bytes <= self.max_bytes:
            return
        # Files that are in several directories count once.
        total_bytes = sum([key.digest.size_bytes for key in frozenset().union(*wanted.values())])
        if total_bytes > self.max_bytes:
            raise InputsTooLarge(
                f"the input files take {total_bytes} bytes; this worker keeps at most {self.max_bytes} ([worker] cache_max_bytes)"
            )

    async def _hold_files(self, wanted: Collection[FileKey], store: BlobStore) -> dict[FileKey, CachedFile] | None:
        """The files, each with a pin, those absent fetched; None if there is no room now. Those of them that were forgotten
        meanwhile say so. Raises as `hold_directories`."""
        while True:
            absent = [key for key in wanted if key not in self._index.known]
            mine = [key for key in absent if key not in self._arriving]
            others = [(key, self._arriving[key]) for key in absent if key in self._arriving]
            held = {key: self._index.known[key] for key in wanted if key in self._index.known}
            if not self._reserve(mine, held.values()):
                return None
            for _, arrival in others:
                arrival.pins += 1
            try:
                await self._fetch(mine, store)
            except BaseException:
                self._unpin(held.values())
                self._let_go(others)
                raise
            held.update((key, self._index.known[key]) for key in mine)
            try:
                for _, arrival in others:
                    await asyncio.shield(arrival.done)
            except BaseException:
                self._unpin(held.values())
                self._let_go(others)
                raise
            held.update((key, arrival.file) for key, arrival in others if arrival.file is not None)
            if len(held) == len(wanted):
                return held
            self._unpin(held.values())  # whoever fetched some of it failed

    async def take(self, files: Sequence[tuple[FileKey, str]]) -> None:
        """Move files (paths by what they hold) into the cache as far as there is room; what does not fit stays behind.

        For outputs: the next action often reads them. Their bytes must be known to match, and no process may have them open.
        """
        taken: dict[FileKey, str] = {}
        for key, path in files:
            if key not in self._index.known and key not in self._arriving and key not in taken and self._reserve([key]):
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

    def forget_changed(self) -> None:
        """Forget what the guard has found changed."""
        found = self.guard.found()
        if found:
            self.forget_files(found)

    def forget(self, keys: Iterable[FileKey]) -> None:
        """Drop files that are not what they should be. Who holds them keeps his links, new actions get new files."""
        self.forget_files([self._index.known[key] for key in keys if key in self._index.known])

    def forget_files(self, files: Iterable[CachedFile]) -> None:
        """The same for those of the files that the cache still has, and tell those who hold them."""
        gone = {file.key: file for file in files if not file.is_forgotten}
        for file in gone.values():
            self._drop(file)
        keys = frozenset(gone)
        holders = {hold: hold.among(gone) for hold in self._holds}
        times = Counter(key for held in holders.values() for key in held)
        for hold, held in holders.items():
            hold.touched |= held
            hold.spoilt |= {gone[key] for key in held if times[key] > 1}
        self._index.break_up(keys)

    def give_back(self, size_bytes: int) -> None:
        """Delete what was not used for longest, that much of it as far as nobody holds it: the disk is short of room."""
        self._evict(self.max_bytes - self._index.used_bytes - self._reserved_bytes + size_bytes)

    def released(self, hold: Hold) -> None:
        """A hold is over; it is called once for each."""
        self._holds.discard(hold)
        self._release(hold.bundles.values())

    async def _fetch(self, keys: Sequence[FileKey], store: BlobStore) -> None:
        """Fetch what was reserved; afterwards each key is a file with its pins, or the room is given back."""
        if not keys:
            return
        siblings = {}
        for key in keys:
            sibling = FileKey(key.digest, not key.is_executable)
            if sibling in self._index.known:
                siblings[key] = sibling
        arrived: list[FileKey] = []
        missing: set[Digest] = set()
        try:
            missing = await fetch(keys, store, self.files, siblings, arrived.append)
        except BaseException:
            self._arrived(keys, arrived)
            self._unpin([self._index.known[key] for key in arrived])
            raise
        self._arrived(keys, arrived)
        if missing:
            self._unpin([self._index.known[key] for key in arrived])
            raise InputsMissing(sorted(missing, key=lambda digest: digest.hash))

    def _reserve(self, keys: Sequence[FileKey], present: Collection[CachedFile] = ()) -> bool:
        """Pin `present` and book room for `keys`, making some if needed; False, and nothing done, if what is held leaves
        too little."""
        needed = sum([key.digest.size_bytes for key in keys])
        self._index.pin(present)
        if needed:
            while self._index.pinned_bytes + self._reserved_bytes + needed > self.max_bytes:
                if not self._index.dissolve_oldest():
                    self._unpin(present)
                    return False
        self._evict(needed)
        self._reserved_bytes += needed
        loop = asyncio.get_running_loop()
        for key in keys:
            self._arriving[key] = _Arrival(loop.create_future())
        return True

    def _arrived(self, keys: Iterable[FileKey], arrived: Collection[FileKey], pins: int | None = None) -> None:
        """Turn reservations into files, or into nothing, and wake those who wait for them."""
        whole = set(arrived)
        for key in keys:
            arrival = self._arriving.pop(key)
            self._reserved_bytes -= key.digest.size_bytes
            if key in whole:
                arrival.file = CachedFile(key, arrival.pins - (1 if pins == 0 else 0))
                if pins == 0:  # an action's output: who else has a descriptor of it nobody knows
                    arrival.file.changed_ns = NEVER
                self._index.add(arrival.file)
            arrival.done.set_result(None)
        self._released.set()

    def _let_go(self, others: Iterable[tuple[FileKey, _Arrival]]) -> None:
        """Give up what somebody else fetches or has fetched."""
        for _, arrival in others:
            if not arrival.done.done():
                arrival.pins -= 1
            elif arrival.file is not None:
                self._unpin([arrival.file])

    def _unpin(self, files: Iterable[CachedFile]) -> None:
        self._index.unpin(files)
        self._released.set()

    def _release(self, bundles: Iterable[Bundle]) -> None:
        self._index.release(bundles)
        self._released.set()

    def _evict(self, needed_bytes: int) -> None:
        """Delete what was not used for longest until `needed_bytes` more fit."""
        excess = self._index.used_bytes + self._reserved_bytes + needed_bytes - self.max_bytes
        victims = []
        while excess > 0 and (file := self._index.oldest()) is not None:
            self._drop(file)
            victims.append(file.key)
            excess -= file.key.digest.size_bytes
        if victims:
            self.evicted(victims)

    def _drop(self, file: CachedFile) -> None:
        self._index.drop(file)
        self.files.remove(file.key)
