"""What the owner of a disk store and its guests tell each other, over a Unix socket in the store's directory.

A stream of frames, each four bytes of length and one message in msgpack. The peer is a process of the same user (the socket
is the user's alone), so a message that does not parse is a fault: the connection ends, and the guest makes a new one.
Nothing that gets lost with a connection does harm: the owner learns of a blob when it is first asked for it, or at its
next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

import msgspec
import structlog

from cas.digest import Digest

log = structlog.get_logger()

MAX_MESSAGE_BYTES: Final = 32 << 20
"""A message names at most some 100,000 digests of 80 bytes; a length beyond this is not one of ours."""
MAX_UNSENT_BYTES: Final = 16 << 20
"""A peer that lets so much pile up is stopped or stuck. The connection ends rather than that it fills the memory."""
_LENGTH_BYTES: Final = 4


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """The owner is ready; the first message to a guest."""

    max_bytes: int
    """The bound of the store."""


class Report(msgspec.Struct, frozen=True, tag=True):
    """What a guest did since its last report."""

    used: list[Digest]
    """Blobs read, asked for or written, in the order of their last use."""
    written_bytes: int
    """Room that the guest had been granted and that blobs among `used` take now."""
    returned_bytes: int
    """Room that it had been granted and gives back."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A guest wants room for blobs."""

    number: int
    """Of the guest's choice; the answer carries it."""
    amounts: list[int]
    """Bytes charged, for each blob."""
    held: list[Digest]
    """Blobs that must not go for it."""


class Grant(msgspec.Struct, frozen=True, tag=True):
    """The answer to an Ask; the files of what was forgotten for it are gone."""

    number: int
    granted: list[bool]
    """For each of the amounts."""
    reason: str
    """Why some were not granted."""
    extra_bytes: int
    """Granted beside, so that the guest need not ask for every blob."""


class Forgotten(msgspec.Struct, frozen=True, tag=True):
    """The owner no longer has these blobs; their files are about to go."""

    digests: list[Digest]


Message = Welcome | Report | Ask | Grant | Forgotten

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Peer(asyncio.Protocol):
    """One end of a connection. `receive` gets each message, `gone` is called once when the connection has ended."""

    def __init__(
        self,
        receive: Callable[[Peer, Message], None],
        gone: Callable[[Peer], None],
        made: Callable[[Peer], None] = lambda _peer: None,
    ) -> None:
        self._receive = receive
        self._gone = gone
        self._made = made
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    @property
    def is_open(self) -> bool:
        """Whether what is sent may arrive."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: Message) -> None:
        """Send `message`, or lose it with the connection."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        encoded = _encoder.encode(message)
        transport.write(len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded)
        if transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            log.warning("a process that shares the store does not read, its connection ends")
            transport.abort()

    def close(self) -> None:
        """End the connection; what was sent is delivered."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a stream's; uvloop's own class is no child of it
        self._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._gone(self)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH_BYTES:
                length = int.from_bytes(buffer[start : start + _LENGTH_BYTES], "big")
                if length > MAX_MESSAGE_BYTES:
                    raise msgspec.DecodeError(f"a message of {length} bytes; expected at most {MAX_MESSAGE_BYTES}")
                end = start + _LENGTH_BYTES + length
                if len(buffer) < end:
                    break
                message = _decoder.decode(memoryview(buffer)[start + _LENGTH_BYTES : end])
                start = end
                self._receive(self, message)
        except msgspec.DecodeError as reason:
            log.warning("a message between the processes of a store does not parse", reason=str(reason))
            start = len(buffer)
            if self._transport is not None:
                self._transport.abort()
        del buffer[:start]
