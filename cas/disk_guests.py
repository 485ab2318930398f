"""The owner's side of a shared disk store: what its guests wrote and used enters the ledger, and they get room from it.

A guest (cas/shared_disk.py) is another process of this machine that reads and writes the files itself. The ledger stays
here, so here is decided what is forgotten:

    room       A guest asks before it writes. Room is reserved, the files that go for it are removed, then it is granted.
               Some more is granted with it, so that most writes need no question; what is not used comes back.
    use        Guests report what they read, asked for and wrote, twice a second and before they ask for room. A blob that
               nobody had used for an hour is stamped by the guest at once, and spared here, so that no answer "it is there"
               is made wrong by a report that is still on its way.
    eviction   Guests are told what is forgotten before its file goes: they remember for a while what they have seen.

A blob that the ledger does not know is looked for on the disk, unless no guest can have written it (cas/presence.py).
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Final, Protocol

import structlog

from cas.blob_directory import BLOCK_BYTES, BlobDirectory
from cas.digest import Digest, parse_digest
from cas.disk_messages import Ask, Forgotten, Grant, Message, Peer, Report, Welcome
from cas.errors import MalformedRequest, StoreFull
from cas.file_lock import DirectoryUnusable
from cas.ledger import Entry, Ledger
from cas.presence import Presence

log = structlog.get_logger()

MAX_EXTRA_BYTES: Final = 16 << 20
"""Room granted beyond what was asked for: at most this, and at most one part in 1,024 of the store."""
MIN_EXTRA_BYTES: Final = 64 << 10
"""Less does not pay: a store so small keeps its room for those who ask."""
SPARE_SECONDS: Final = 1.0
"""A file stamped so much later than the ledger knows was stamped by a guest; less is the clocks' difference."""
SWEEP_SECONDS: Final = 1.0
"""How long after a connection has ended the guest's files are removed, if it is gone: its lock may end a little later."""


class Owner(Protocol):
    """What the guests need of the store."""

    def busy_with(self, digest: Digest) -> asyncio.Future[None] | None:
        """What ends when the file of `digest` is no longer being written or removed; None if it is not."""

    def note(self) -> None:
        """Something was written or used that is to be synced."""

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Have `work` done while the store is open."""

    async def discard(self, victims: list[Digest]) -> None:
        """Remove the files of forgotten blobs."""

    def now(self) -> float:
        """Seconds since the epoch."""


def listening_socket(root: os.PathLike[str], name: str) -> socket.socket:
    """A Unix socket `name` in `root`, the user's alone; whoever left one there is gone, because the caller holds the lock.

    By way of the directory's descriptor, since an address holds 107 bytes only (unix(7), sun_path).
    """
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = f"/proc/self/fd/{directory}/{name}"
        with suppress(FileNotFoundError):
            os.unlink(path)
        made.bind(path)
        # Nobody connects before listen, so the mode comes in time.
        os.chmod(path, 0o600)
        made.listen(64)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    finally:
        os.close(directory)
    return made


class Guests:
    """The guests of one store."""

    def __init__(self, directory: BlobDirectory, ledger: Ledger, owner: Owner) -> None:
        self._directory = directory
        self._ledger = ledger
        self._owner = owner
        self._granted: dict[Peer, int] = {}
        """Room granted to each connection that no blob takes yet, in bytes."""
        self._presence: Presence | None = None
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        directory.is_shared = True
        ledger.spares = self._was_used

    # The start and the end

    def prepare(self) -> None:
        """Before the directory is scanned. Raises DirectoryUnusable."""
        try:
            # Guests of an owner that died go on, and have the map of what is there.
            anew = not self._directory.sweep()
            self._presence = Presence(self._directory.presence, anew=anew)
        except OSError as reason:
            raise DirectoryUnusable(f"store directory {self._directory.root} cannot be shared: {reason}") from reason

    def publish_all(self) -> None:
        """After the directory has been scanned."""
        self._map.publish(self._ledger)

    async def listen(self) -> None:
        """Take guests. Raises DirectoryUnusable."""
        try:
            made = listening_socket(self._directory.root, self._directory.socket_name)
            self._server = await asyncio.get_running_loop().create_unix_server(
                lambda: Peer(self._receive, self._gone, self._came), sock=made
            )
        except OSError as reason:
            raise DirectoryUnusable(f"store directory {self._directory.root} cannot be shared: {reason}") from reason

    def close(self) -> bool:
        """Take no more guests, and let those that there are go on by themselves; returns whether there are some."""
        if self._server is not None:
            self._server.close()
        if self._sweep is not None:
            self._sweep.cancel()
        guests = list(self._granted)
        for peer in guests:
            peer.close()
        self._granted.clear()
        return bool(guests)

    # For the store

    def announce(self, forgotten: Sequence[Digest], published: Iterable[Digest] = ()) -> None:
        """Files of `forgotten` are about to go, and files of `published` to get their names."""
        self._map.publish(published)
        if forgotten and self._granted:
            message = Forgotten(list(forgotten))
            for peer in self._granted:
                peer.send(message)

    def find_unknown(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of `digests`, which the ledger does not know, that a guest has written; it knows them now."""
        return [digest for digest in self._map.maybe_of_guests(digests) if self._adopt(digest)]

    def _adopt(self, digest: Digest) -> bool:
        if self._owner.busy_with(digest) is not None:
            return False
        stamped_at = self._directory.stamp_of(digest)
        if stamped_at is None:
            return False
        self._ledger.add(digest, stamped_at)
        self._owner.note()
        self._trim()
        return True

    def _take_over(self, digest: Digest) -> None:
        """Adopt what a guest has reported, or tell the guests that it is not there."""
        if self._owner.busy_with(digest) is not None:
            # Written by a guest while the file of its forgotten predecessor was being removed.
            self._owner.start(self._take_over_later(digest))
        elif digest not in self._ledger and not self._adopt(digest):
            self.announce([digest])

    async def _take_over_later(self, digest: Digest) -> None:
        while (busy := self._owner.busy_with(digest)) is not None:
            await asyncio.wait([busy])
        self._take_over(digest)

    def _trim(self) -> None:
        """Keep the bound where blobs came without room having been reserved."""
        ledger = self._ledger
        if ledger.used_bytes + ledger.reserved_bytes <= ledger.max_bytes:
            return
        with suppress(StoreFull):  # what is reserved comes back
            self._owner.start(self._owner.discard(ledger.evict()))

    def _was_used(self, digest: Digest, entry: Entry) -> bool:
        if not self._granted:
            return False
        stamped_at = self._directory.stamp_of(digest)
        if stamped_at is None or stamped_at <= entry.stamped_at + SPARE_SECONDS:
            return False
        entry.stamped_at = stamped_at
        return True

    @property
    def _map(self) -> Presence:
        assert self._presence is not None
        return self._presence

    # Connections

    def _came(self, peer: Peer) -> None:
        self._granted[peer] = 0
        peer.send(Welcome(self._ledger.max_bytes))

    def _gone(self, peer: Peer) -> None:
        self._ledger.release(self._granted.pop(peer, 0))
        if self._server is not None and self._server.is_serving() and self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(SWEEP_SECONDS, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep = None
        self._directory.sweep()

    def _receive(self, peer: Peer, message: Message) -> None:
        match message:
            case Report():
                self._report(peer, message)
            case Ask():
                self._ask(peer, message)
            case _:
                log.warning("a guest sent what only the owner may say", message=type(message).__name__)
                peer.close()

    def _report(self, peer: Peer, report: Report) -> None:
        back = min(self._granted.get(peer, 0), max(0, report.written_bytes) + max(0, report.returned_bytes))
        if back:
            self._granted[peer] -= back
            self._ledger.release(back)
        touch, now = self._ledger.touch, self._owner.now()
        for digest in report.used:
            if touch(digest, now) is None and _is_sound(digest):
                self._take_over(digest)
        if report.written_bytes or self._ledger.stale:
            self._owner.note()

    def _ask(self, peer: Peer, ask: Ask) -> None:
        held = set(ask.held)
        victims: list[Digest] = []
        granted: list[bool] = []
        reason = ""
        reserved = extra_bytes = 0
        for amount in ask.amounts:
            try:
                victims += self._ledger.reserve(max(0, amount), held)
            except StoreFull as full:
                reason = str(full)
                granted.append(False)
            else:
                reserved += max(0, amount)
                granted.append(True)
        wanted = min(MAX_EXTRA_BYTES, self._ledger.max_bytes >> 10) // BLOCK_BYTES * BLOCK_BYTES
        if wanted >= MIN_EXTRA_BYTES and not reason:
            with suppress(StoreFull):
                victims += self._ledger.reserve(wanted, held)
                extra_bytes = wanted
        self._granted[peer] = self._granted.get(peer, 0) + reserved + extra_bytes
        answer = Grant(ask.number, granted, reason, extra_bytes)
        if victims:
            self._owner.start(self._grant(peer, answer, victims))
        else:
            peer.send(answer)

    async def _grant(self, peer: Peer, answer: Grant, victims: list[Digest]) -> None:
        await self._owner.discard(victims)
        peer.send(answer)


def _is_sound(digest: Digest) -> bool:
    """Whether a digest from a message is one: it becomes a path."""
    try:
        parse_digest(digest.hash, digest.size_bytes, digest.function)
    except MalformedRequest as reason:
        log.warning("a guest reported what is no digest", reason=str(reason))
        return False
    return True
