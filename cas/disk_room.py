"""A guest's connection to the owner of the disk store: the room it has to write in, and what it has to report.

All of it belongs to the event loop. The connection is made again whenever it breaks; until then the guest has a part of
the store's bound to go on with, and after that its writes wait, and fail with Unavailable if the owner stays away.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import structlog

from cas.blob_directory import BlobDirectory, charge
from cas.cancellation import to_the_end
from cas.digest import Digest
from cas.disk_messages import Ask, Forgotten, Grant, Message, Peer, Report, Welcome
from cas.errors import StatusError, StoreFull, Unavailable
from cas.file_lock import DirectoryUnusable

log = structlog.get_logger()

REPORT_SECONDS: Final = 0.5
"""How long a report may wait. What was used longest ago goes first, in a store that was filled over hours or days."""
REPORTED_AT_ONCE: Final = 2000
"""Blobs in a message; the owner takes about 2 ms for them."""
MAX_REPORTED: Final = 100_000
"""Blobs kept for a report while the owner is away; those used longest ago are left out first."""
RECONNECT_SECONDS: Final = 0.1
AWAY_PARTS: Final = 64
"""Without the owner a guest may write one part in so many of the store's bound."""
AWAY_SECONDS: Final = 30.0
"""How long a write then waits for the owner. It is started again at once, but loads a large store for some seconds."""

Taken = dict[int, int]
"""Room that a write has, in bytes, by the era in which it was taken."""


class Room:
    """Use `open` and `close`. `forget` is told what the owner forgets, or None where that cannot be known."""

    def __init__(self, directory: BlobDirectory, forget: Callable[[Iterable[Digest] | None], None]) -> None:
        self._directory = directory
        self._forget = forget
        self.max_bytes = 0
        self._peer: Peer | None = None
        """The connection, once the owner has welcomed us."""
        self._present = asyncio.Event()
        """Set while there is a connection."""
        self._absent = asyncio.Event()
        self._credit_bytes = 0
        """Room that may be taken: granted by the owner, or allowed while it is away."""
        self._extra_bytes = 0
        """What the owner granted last without having been asked."""
        self._took = False
        """Whether room was taken since the last report."""
        self._used: list[Digest] = []
        self._era = 0
        """Counts the connections and the times between them: room taken in one is not given back in another."""
        self._written_bytes = 0
        self._asked: dict[int, tuple[asyncio.Future[Grant], Sequence[int]]] = {}
        self._numbers = 0
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the owner is there, and tells us what it forgets."""
        return self._peer is not None

    async def open(self, start_seconds: float) -> None:
        """Connect. Raises DirectoryUnusable if the owner does not answer in time."""
        self._loop = asyncio.get_running_loop()
        self._connecting = self._loop.create_task(self._stay_connected())
        try:
            async with asyncio.timeout(start_seconds):
                await self._present.wait()
        except TimeoutError:
            await self.close()
            raise DirectoryUnusable(
                f"store directory {self._directory.root} has no process that shares it; waited {start_seconds:g} s"
            ) from None

    async def close(self) -> None:
        """Report what there is to report, and disconnect."""
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._timer is not None:
            self._timer.cancel()
        self.report()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    # What was used

    def use(self, digests: Iterable[Digest]) -> None:
        """Blobs were used; they are the last in the order of use now."""
        self._used.extend(digests)
        if len(self._used) > 2 * MAX_REPORTED:
            self.report()
        if self._timer is None:
            self._timer = self._loop.call_later(REPORT_SECONDS, self._report_later)

    def _report_later(self) -> None:
        self._timer = None
        returned_bytes = 0
        if self._peer is not None and not self._took:
            returned_bytes, self._credit_bytes = self._credit_bytes, 0
        self._took = False
        self.report(returned_bytes)
        if self._peer is not None and self._credit_bytes:
            self._timer = self._loop.call_later(REPORT_SECONDS, self._report_later)

    def report(self, returned_bytes: int = 0) -> None:
        """Tell the owner, or keep it for later."""
        # Each once, where it was used last.
        used = list(dict.fromkeys(reversed(self._used)))[:MAX_REPORTED]
        used.reverse()
        peer = self._peer
        if peer is None:
            self._used = used
            return
        if not used and not self._written_bytes and not returned_bytes:
            return
        for start in range(0, max(1, len(used)), REPORTED_AT_ONCE):
            # The first one says what room is taken, before the blobs that take it are counted.
            peer.send(Report(used[start : start + REPORTED_AT_ONCE], self._written_bytes, returned_bytes))
            self._written_bytes = returned_bytes = 0
        self._used = []

    # Room

    def require(self, digest: Digest) -> None:
        """Raises StoreFull if the blob could not be held even alone."""
        if charge(digest.size_bytes) > self.max_bytes:
            raise StoreFull(
                f"blob {digest} can never fit: the store holds at most {self.max_bytes} bytes "
                "([store] max_bytes of the server)"
            )

    def take_at_once(self, amount_bytes: int, taken: Taken) -> bool:
        """Take room that is there already, which `taken` then says; False if there is too little."""
        if amount_bytes > self._credit_bytes:
            return False
        self._credit_bytes -= amount_bytes
        self._note(amount_bytes, taken)
        return True

    def _note(self, amount_bytes: int, taken: Taken) -> None:
        taken[self._era] = taken.get(self._era, 0) + amount_bytes
        self._took = True

    def settle(self, taken: Taken, written_bytes: int) -> None:
        """Of the room `taken`, blobs have `written_bytes` now, and the rest is free again."""
        amount_bytes = taken.get(self._era, 0)
        written_bytes = min(written_bytes, amount_bytes)
        self._written_bytes += written_bytes
        self._credit_bytes += amount_bytes - written_bytes
        self._return_surplus()
        if self._timer is None:
            self._timer = self._loop.call_later(REPORT_SECONDS, self._report_later)

    def _return_surplus(self) -> None:
        """Give back at once what a write has left, but as much as the owner grants unasked: others may need it."""
        if self._peer is not None and self._credit_bytes > self._extra_bytes:
            returned_bytes = self._credit_bytes - self._extra_bytes
            self._credit_bytes = self._extra_bytes
            self.report(returned_bytes)

    async def take(self, amounts: Sequence[int], held: Iterable[Digest], taken: Taken) -> list[StatusError | None]:
        """Take room for blobs, for which others may be forgotten but those in `held`. Returns None for each that has it,
        otherwise why not: StoreFull, or Unavailable while the owner is away."""
        held = list(held)
        give_up_at = self._loop.time() + AWAY_SECONDS
        while True:
            if self._peer is None:
                if self.take_at_once(sum(amounts), taken):
                    return [None] * len(amounts)
                try:
                    async with asyncio.timeout_at(give_up_at):
                        await self._present.wait()
                except TimeoutError:
                    away = Unavailable("the process that owns the store is away, try again")
                    return [away] * len(amounts)
                continue
            grant = await self._ask(amounts, held)
            if grant is None:
                continue
            self._note(_granted_bytes(amounts, grant), taken)
            full = StoreFull(grant.reason)
            return [None if granted else full for granted in grant.granted]

    async def _ask(self, amounts: Sequence[int], held: list[Digest]) -> Grant | None:
        """The owner's answer; None if it went away."""
        self._numbers += 1
        number, peer = self._numbers, self._peer
        assert peer is not None
        answer: asyncio.Future[Grant] = self._loop.create_future()
        self._asked[number] = (answer, amounts)
        # What is too little goes back first, or it would be forgotten for in vain.
        returned_bytes, self._credit_bytes = self._credit_bytes, 0
        self.report(returned_bytes)
        peer.send(Ask(number, list(amounts), held))
        try:
            # To the end: what is granted to a call that was cancelled goes back at once.
            return await to_the_end(answer)
        except ConnectionResetError:
            return None
        except asyncio.CancelledError:
            if answer.exception() is None:
                self._credit_bytes += _granted_bytes(amounts, answer.result())
                self._return_surplus()
            raise

    def _granted(self, grant: Grant) -> None:
        asked = self._asked.pop(grant.number, None)
        if asked is None or len(asked[1]) != len(grant.granted):
            log.error("the owner of the store answered what was not asked", number=grant.number)
            return
        self._credit_bytes += grant.extra_bytes
        self._extra_bytes = grant.extra_bytes
        asked[0].set_result(grant)

    # The connection

    async def _stay_connected(self) -> None:
        while True:
            peer = Peer(self._receive, self._gone)
            try:
                directory = os.open(self._directory.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                made.setblocking(False)
                try:
                    # By way of the directory's descriptor: an address holds 107 bytes only (unix(7), sun_path).
                    made.connect(f"/proc/self/fd/{directory}/{self._directory.socket_name}")
                except BaseException:
                    made.close()
                    raise
                finally:
                    os.close(directory)
                self._absent.clear()
                await self._loop.create_unix_connection(_given(peer), sock=made)
            except OSError:
                await asyncio.sleep(RECONNECT_SECONDS)
                continue
            await self._absent.wait()
            await asyncio.sleep(RECONNECT_SECONDS)

    def _receive(self, peer: Peer, message: Message) -> None:
        match message:
            case Welcome():
                self.max_bytes = message.max_bytes
                self._peer = peer
                self._era += 1
                self._credit_bytes = self._written_bytes = self._extra_bytes = 0
                self._forget(None)
                self._present.set()
                self.report()
            case Grant():
                self._granted(message)
            case Forgotten():
                self._forget(message.digests)
            case _:
                peer.close()

    def _gone(self, peer: Peer) -> None:
        self._absent.set()
        if peer is not self._peer:
            return
        self._peer = None
        self._era += 1
        self._present.clear()
        self._forget(None)
        self._credit_bytes = self.max_bytes // AWAY_PARTS
        self._written_bytes = 0
        asked, self._asked = self._asked, {}
        for answer, _ in asked.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError())
        log.warning("the owner of the store is away", directory=str(self._directory.root))


def _given(peer: Peer) -> Callable[[], Peer]:
    return lambda: peer


def _granted_bytes(amounts: Sequence[int], grant: Grant) -> int:
    return sum(amount for amount, granted in zip(amounts, grant.granted, strict=True) if granted)
