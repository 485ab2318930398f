"""The compressors of REAPI (Compressor.Value), in one piece for batches and in pieces for byte streams.

Whoever sends compressed data also says how long the blob is. Decompression believes neither: it stops at the first byte
too many, and in the end asks for every byte that was promised. What a few compressed bytes can make it hold is bounded:
one piece of output, and the window of the format, which is 32 KiB for DEFLATE, 16 MiB for brotli and 128 MiB at the most
for zstd.

All compress at their fastest level: a build waits for the bytes, and most of them are read once or twice.
"""

from __future__ import annotations

import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final, Protocol, Self

import brotli

from cas.errors import MalformedRequest
from cas.store import CHUNK_BYTES

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Data = bytes | bytearray | memoryview

_ZSTD_OPTIONS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 27}
"""Windows of at most 128 MiB, what `zstd --long` makes; RFC 8878, 3.1.1.1.2 lets a decoder refuse from 8 MiB on."""

_ZSTD_FREE_FRAMES: Final = 1000
_ZSTD_FRAME_BYTES: Final = 1024
"""A frame costs some 10 µs however little is in it, and takes 9 bytes to ask for. Past the free ones, each must be worth
this many bytes, compressed and decompressed together."""

_RAW_DEFLATE: Final = -zlib.MAX_WBITS
"""zlib's way to say: no header, no checksum."""

_BROTLI_STEP_BYTES: Final = 256 * 1024
"""brotli's output grows by whole blocks past the limit that it is given; from this one it stays under CHUNK_BYTES."""

_INPUT_STEP_BYTES: Final = 256 * 1024
"""How much compressed data a library gets at once. zstd copies what is left behind each frame, so many small frames in
one large piece would cost the square of its size."""


class Compressor(Enum):
    """One compressor; `value` is its number in REAPI Compressor.Value."""

    resource_segment: str
    """How resource names spell it: "compressed-blobs/{segment}/..."; "" for IDENTITY, whose blobs are under "blobs"."""

    IDENTITY = 0, ""
    ZSTD = 1, "zstd"
    """RFC 8878; any number of frames, skippable ones too, but no dictionaries."""
    DEFLATE = 2, "deflate"
    """RFC 1951, bare: without the header and checksum of zlib (RFC 1950) or gzip (RFC 1952)."""
    BROTLI = 3, "brotli"
    """RFC 7932, without the large windows that came later."""

    def __new__(cls, value: int, resource_segment: str) -> Self:
        member = object.__new__(cls)
        member._value_ = value
        member.resource_segment = resource_segment
        return member


_BY_SEGMENT: Final = {
    compressor.resource_segment: compressor for compressor in Compressor if compressor.resource_segment
}
_BY_VALUE: Final[dict[int, Compressor]] = {compressor.value: compressor for compressor in Compressor}


def compressor_of_segment(segment: str) -> Compressor:
    """The compressor that a resource name spells so. Raises MalformedRequest for anything else, "identity" included."""
    found = _BY_SEGMENT.get(segment)
    if found is None:
        raise MalformedRequest(f"compressor {segment[:100]!r} is not one of {', '.join(_BY_SEGMENT)}")
    return found


def compressor_of_value(value: int) -> Compressor:
    """The compressor with this number in REAPI Compressor.Value. Raises MalformedRequest for any other number."""
    found = _BY_VALUE.get(value)
    if found is None:
        raise MalformedRequest(
            f"compressor {value} is not one of {', '.join(f'{c.value} ({c.name})' for c in Compressor)}"
        )
    return found


class _Decoder(Protocol):
    """One library, decompressing in steps."""

    hungry: bool
    """Whether all input is used up and all its output given out."""
    ended: bool
    """Whether the compressed data may end after what was given so far."""

    def decode(self, data: Data, most_bytes: int) -> bytes:
        """Some output, about `most_bytes` (> 0) at the most. Call with b"" until it is hungry, then with more data."""
        ...


class _Plain:
    """IDENTITY: what comes in goes out."""

    hungry = True
    ended = True

    def decode(self, data: Data, _most_bytes: int) -> bytes:
        return bytes(data)


class _Zstd:
    """zstd frames, one after the other."""

    def __init__(self) -> None:
        self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
        self._frames = 1
        self._seen_bytes = 0
        self.hungry = True
        self.ended = False

    def decode(self, data: Data, most_bytes: int) -> bytes:
        self._seen_bytes += len(data)
        if self.ended:
            data = self._frame.unused_data or data
            self._frame = zstd.ZstdDecompressor(options=_ZSTD_OPTIONS)
            self._frames += 1
            if self._frames > _ZSTD_FREE_FRAMES + self._seen_bytes // _ZSTD_FRAME_BYTES:
                raise zstd.ZstdError(f"{self._frames} frames in {self._seen_bytes} bytes")
        output = self._frame.decompress(data, most_bytes)
        self._seen_bytes += len(output)
        self.ended = self._frame.eof
        self.hungry = not self._frame.unused_data if self.ended else self._frame.needs_input
        return output


class _Deflate:
    """Raw DEFLATE."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_RAW_DEFLATE)
        self.hungry = True
        self.ended = False

    def decode(self, data: Data, most_bytes: int) -> bytes:
        output = self._stream.decompress(self._stream.unconsumed_tail or data, most_bytes)
        self.ended = self._stream.eof
        if self._stream.unused_data:
            raise zlib.error("data after the last block")
        self.hungry = self.ended or (not self._stream.unconsumed_tail and len(output) < most_bytes)
        return output


class _BrotliStream(Protocol):
    """brotli.Decompressor, which comes without types."""

    def process(self, data: Data, output_buffer_limit: int) -> bytes: ...
    def can_accept_more_data(self) -> bool: ...
    def is_finished(self) -> bool: ...


class _Brotli:
    """brotli. The library itself refuses data after the end."""

    def __init__(self) -> None:
        self._stream: _BrotliStream = brotli.Decompressor()
        self.hungry = True
        self.ended = False

    def decode(self, data: Data, most_bytes: int) -> bytes:
        output = self._stream.process(data, output_buffer_limit=min(most_bytes, _BROTLI_STEP_BYTES))
        self.ended = self._stream.is_finished()
        # It also accepts data while output waits, which would be lost at the end: ask until there is none.
        self.hungry = self.ended or (self._stream.can_accept_more_data() and not output)
        return output


_DECODERS: Final[dict[Compressor, Callable[[], _Decoder]]] = {
    Compressor.IDENTITY: _Plain,
    Compressor.ZSTD: _Zstd,
    Compressor.DEFLATE: _Deflate,
    Compressor.BROTLI: _Brotli,
}


class Decompression:
    """A blob of `size_bytes` on its way out of compressed pieces. After it raised it is of no further use."""

    def __init__(self, compressor: Compressor, size_bytes: int) -> None:
        self._compressor = compressor
        self._size_bytes = size_bytes
        self._left_bytes = size_bytes
        self._decoder = _DECODERS[compressor]()

    def feed(self, data: Data) -> Iterator[bytes]:
        """What `data` adds to the blob, in pieces of at most CHUNK_BYTES. Exhaust it before the next call.

        Raises MalformedRequest for data that are not in the format, that go on after its end, or that give more than
        `size_bytes`; of these no more than one piece is made, and none is given out.
        """
        view = memoryview(data)
        for start in range(0, len(view), _INPUT_STEP_BYTES):
            step: Data = view[start : start + _INPUT_STEP_BYTES]
            while True:
                piece = self._decode(step)
                if piece:
                    yield piece
                if self._decoder.hungry:
                    break
                step = b""

    def _decode(self, step: Data) -> bytes:
        try:
            # One byte more than is due shows that there is more.
            piece = self._decoder.decode(step, min(CHUNK_BYTES, self._left_bytes + 1))
        except (zstd.ZstdError, zlib.error, brotli.error) as error:
            raise MalformedRequest(f"data do not decompress as {self._compressor.name}: {error}") from error
        if len(piece) > self._left_bytes:
            raise MalformedRequest(f"{self._compressor.name} data give more than the {self._size_bytes} bytes declared")
        self._left_bytes -= len(piece)
        return piece

    def finish(self) -> None:
        """Say that all data came. Raises MalformedRequest if they end early, or if the blob is not complete."""
        if not self._decoder.ended:
            raise MalformedRequest(f"{self._compressor.name} data are cut off")
        if self._left_bytes:
            got_bytes = self._size_bytes - self._left_bytes
            raise MalformedRequest(
                f"{self._compressor.name} data give {got_bytes} bytes, less than the {self._size_bytes} declared"
            )


def decompress(data: bytes, compressor: Compressor, size_bytes: int) -> bytes:
    """The blob of `size_bytes` that `data` hold, exactly. Raises MalformedRequest as `Decompression` does."""
    decompression = Decompression(compressor, size_bytes)
    blob = b"".join(decompression.feed(data))
    decompression.finish()
    return blob


class Compression:
    """A blob on its way into compressed pieces."""

    def __init__(self, compressor: Compressor) -> None:
        self._feed: Callable[[Data], bytes]
        self._finish: Callable[[], bytes]
        match compressor:
            case Compressor.IDENTITY:
                self._feed, self._finish = bytes, bytes
            case Compressor.ZSTD:
                zstd_stream = zstd.ZstdCompressor(level=1)
                self._feed, self._finish = zstd_stream.compress, zstd_stream.flush
            case Compressor.DEFLATE:
                zlib_stream = zlib.compressobj(1, zlib.DEFLATED, _RAW_DEFLATE)
                self._feed, self._finish = zlib_stream.compress, zlib_stream.flush
            case Compressor.BROTLI:
                brotli_stream = brotli.Compressor(quality=1)
                self._feed, self._finish = brotli_stream.process, brotli_stream.finish

    def feed(self, data: Data) -> bytes:
        """The compressed data that are ready once `data` came; often none."""
        return self._feed(data)

    def finish(self) -> bytes:
        """The rest of the compressed data, after the whole blob came."""
        return self._finish()


class _ThreadsCompressor(threading.local):
    """A zstd compressor for each thread: to make one takes longer than to compress a small blob."""

    def __init__(self) -> None:
        self.zstd = zstd.ZstdCompressor(level=1)


_threads_compressor = _ThreadsCompressor()


def compress(data: Data, compressor: Compressor) -> bytes:
    """`data` compressed. It may come out longer than it was."""
    if compressor is Compressor.ZSTD:
        return _threads_compressor.zstd.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
    compression = Compression(compressor)
    return compression.feed(data) + compression.finish()
