"""Compressed data come back as they were, and hostile data are refused before they cost much."""

from __future__ import annotations

import re
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import brotli
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.compression import (
    Compression,
    Compressor,
    Decompression,
    compress,
    compressor_of_segment,
    compressor_of_value,
    decompress,
)
from cas.errors import MalformedRequest
from cas.store import CHUNK_BYTES
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

REAL = [Compressor.ZSTD, Compressor.DEFLATE, Compressor.BROTLI]
"""Those that compress."""

NOISE = bytes(hash_byte * 167 % 251 for hash_byte in range(5000))
TEXT = b"a line of a compiler's output, much like the next one\n" * 400
MIXED = NOISE + TEXT


def streamed(compressor: Compressor, pieces: Iterator[bytes]) -> bytes:
    compression = Compression(compressor)
    return b"".join([*(compression.feed(piece) for piece in pieces), compression.finish()])


def feed_all(decompression: Decompression, data: bytes, step_bytes: int, given_out: list[int]) -> None:
    """Decompress `data`; the sizes of the pieces that come out go to `given_out`."""
    for start in range(0, len(data), step_bytes):
        for piece in decompression.feed(data[start : start + step_bytes]):
            given_out.append(len(piece))
    decompression.finish()


def fed(decompression: Decompression, data: bytes, step_bytes: int) -> bytes:
    steps = range(0, len(data), step_bytes)
    output = b"".join(piece for start in steps for piece in decompression.feed(data[start : start + step_bytes]))
    decompression.finish()
    return output


@contextmanager
def holding_at_most(most_bytes: int) -> Iterator[None]:
    """What Python allocates meanwhile, decompressed output included, stays under `most_bytes` at any moment."""
    tracemalloc.start()
    try:
        yield
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < most_bytes


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", Compressor)
def test_numbers_are_those_of_the_protocol(compressor: Compressor) -> None:
    assert compressor.value == re_pb2.Compressor.Value.Value(compressor.name)
    assert compressor_of_value(compressor.value) is compressor


@pytest.mark.parametrize("value", [-1, 4, 1 << 31])
def test_another_number_is_refused(value: int) -> None:
    with pytest.raises(MalformedRequest, match=rf"^compressor {value} is not one of 0 \(IDENTITY\), 1 \(ZSTD\)"):
        compressor_of_value(value)


def test_every_compressor_of_the_protocol_is_known() -> None:
    assert {compressor.name for compressor in Compressor} == set(re_pb2.Compressor.Value.keys())


@pytest.mark.parametrize(
    ("segment", "expected"),
    [("zstd", Compressor.ZSTD), ("deflate", Compressor.DEFLATE), ("brotli", Compressor.BROTLI)],
)
def test_resource_names_spell_them_in_lower_case(segment: str, expected: Compressor) -> None:
    assert compressor_of_segment(segment) is expected
    assert expected.resource_segment == segment


@pytest.mark.parametrize("segment", ["", "identity", "ZSTD", "zstd ", "gzip", "z" * 10_000])
def test_another_spelling_is_refused(segment: str) -> None:
    with pytest.raises(MalformedRequest, match=r"is not one of zstd, deflate, brotli$") as caught:
        compressor_of_segment(segment)
    assert len(str(caught.value)) < 200


# --- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressor", Compressor)
@given(data=st.binary(max_size=3000))
def test_what_was_compressed_comes_back(compressor: Compressor, data: bytes) -> None:
    assert decompress(compress(data, compressor), compressor, len(data)) == data


@pytest.mark.parametrize("compressor", Compressor)
@given(
    cuts=st.lists(st.integers(0, len(MIXED)), max_size=6),
    step_bytes=st.sampled_from([1, 7, 100, 5000, 1 << 20]),
)
def test_a_stream_may_be_cut_anywhere(compressor: Compressor, cuts: list[int], step_bytes: int) -> None:
    edges = [0, *sorted(cuts), len(MIXED)]
    compressed = streamed(compressor, (MIXED[start:end] for start, end in pairwise(edges)))
    step_bytes = step_bytes if compressor is not Compressor.IDENTITY else max(step_bytes, 100)

    assert fed(Decompression(compressor, len(MIXED)), compressed, step_bytes) == MIXED


@pytest.mark.parametrize("compressor", Compressor)
def test_large_blobs_come_back_in_bounded_pieces(compressor: Compressor) -> None:
    blob = NOISE * 400 + bytes(3 * CHUNK_BYTES)
    compressed = compress(blob, compressor)
    decompression = Decompression(compressor, len(blob))
    pieces = list(decompression.feed(compressed))
    decompression.finish()

    assert b"".join(pieces) == blob
    assert all(pieces)
    assert max(map(len, pieces)) <= CHUNK_BYTES


@pytest.mark.parametrize("compressor", REAL)
def test_repetitive_data_get_smaller(compressor: Compressor) -> None:
    assert len(compress(TEXT, compressor)) < len(TEXT) // 20


def test_deflate_has_neither_header_nor_checksum() -> None:
    compressed = compress(TEXT, Compressor.DEFLATE)

    assert zlib.decompress(compressed, wbits=-15) == TEXT
    with pytest.raises(MalformedRequest):
        decompress(zlib.compress(TEXT), Compressor.DEFLATE, len(TEXT))


def test_zstd_frames_one_after_the_other_are_one_blob() -> None:
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"any"
    compressed = zstd.compress(b"first ") + skippable + zstd.compress(b"") + zstd.compress(b"second")

    assert decompress(compressed, Compressor.ZSTD, 12) == b"first second"
    assert fed(Decompression(Compressor.ZSTD, 12), compressed, 1) == b"first second"


def test_many_small_zstd_frames_are_taken_while_they_are_worth_it() -> None:
    line = NOISE[:2048]

    assert decompress(zstd.compress(line) * 3000, Compressor.ZSTD, 3000 * 2048) == line * 3000


def test_a_zstd_window_of_128_mib_is_taken() -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    compressed = compressor.compress(TEXT) + compressor.flush()

    assert decompress(compressed, Compressor.ZSTD, len(TEXT)) == TEXT


# --- hostile data --------------------------------------------------------------------------------------------------


def cut_off(compressor: Compressor) -> str:
    return f"{compressor.name} data are cut off"


def too_much(compressor: Compressor) -> str:
    return f"{compressor.name} data give more than the {len(MIXED)} bytes declared"


def too_little(compressor: Compressor) -> str:
    return f"{compressor.name} data give {len(MIXED) - 1} bytes, less than the {len(MIXED)} declared"


def not_in_the_format(compressor: Compressor) -> str:
    return f"data do not decompress as {compressor.name}: "


HOSTILE: dict[str, tuple[Callable[[Compressor], bytes], Callable[[Compressor], str]]] = {
    "nothing": (lambda _: b"", cut_off),
    "first byte only": (lambda compressor: compress(MIXED, compressor)[:1], cut_off),
    "half": (lambda compressor: compress(MIXED, compressor)[: len(compress(MIXED, compressor)) // 2], cut_off),
    "all but the last byte": (lambda compressor: compress(MIXED, compressor)[:-1], cut_off),
    "garbage": (lambda _: b"\xff" * 100, not_in_the_format),
    "not compressed": (lambda _: MIXED, not_in_the_format),
    "one byte after the end": (lambda compressor: compress(MIXED, compressor) + b"\xff", not_in_the_format),
    "garbage after the end": (lambda compressor: compress(MIXED, compressor) + b"\xff" * 10, not_in_the_format),
    "one byte too many": (lambda compressor: compress(MIXED + b"!", compressor), too_much),
    "one byte too few": (lambda compressor: compress(MIXED[:-1], compressor), too_little),
    "ten times too many": (lambda compressor: compress(MIXED * 10, compressor), too_much),
}


@pytest.mark.parametrize("compressor", REAL)
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("step_bytes", [1, 1000, 1 << 20])
def test_hostile_data_are_refused(compressor: Compressor, case: str, step_bytes: int) -> None:
    make, text = HOSTILE[case]
    data, given_out = make(compressor), list[int]()

    with pytest.raises(MalformedRequest, match="^" + re.escape(text(compressor))):
        feed_all(Decompression(compressor, len(MIXED)), data, step_bytes, given_out)
    assert sum(given_out) <= len(MIXED)
    with pytest.raises(MalformedRequest, match="^" + re.escape(text(compressor))):
        decompress(data, compressor, len(MIXED))


@pytest.mark.parametrize(
    ("data", "text"), [(b"abcd", "more than the 3"), (b"ab", "give 2 bytes"), (b"", "give 0 bytes")]
)
def test_identity_takes_exactly_the_bytes_declared(data: bytes, text: str) -> None:
    with pytest.raises(MalformedRequest, match=text):
        decompress(data, Compressor.IDENTITY, 3)


def test_the_beginning_of_another_zstd_frame_is_a_frame_cut_off() -> None:
    with pytest.raises(MalformedRequest, match=r"^ZSTD data are cut off"):
        decompress(zstd.compress(TEXT) + zstd.compress(b"")[:5], Compressor.ZSTD, len(TEXT))


@pytest.mark.parametrize("compressor", REAL)
def test_the_empty_blob_has_a_compressed_form_and_it_is_not_empty(compressor: Compressor) -> None:
    assert decompress(compress(b"", compressor), compressor, 0) == b""
    with pytest.raises(MalformedRequest, match="cut off"):
        decompress(b"", compressor, 0)


@cache
def bomb(compressor: Compressor) -> bytes:
    """A GiB of zeros: 33 kB of zstd, 2 kB of brotli; some MB of DEFLATE, which shrinks a thousandfold at best."""
    if compressor is Compressor.BROTLI:
        # At its fast level brotli starts a block for each piece; at this one it takes them together.
        stream = brotli.Compressor(quality=5)
        pieces = [stream.process(bytes(1 << 24)) for _ in range(64)]
        return b"".join([*pieces, stream.finish()])
    return streamed(compressor, (bytes(1 << 24) for _ in range(64)))


@pytest.mark.parametrize("compressor", REAL)
@pytest.mark.parametrize("size_bytes", [0, 1, 1000, 3 * CHUNK_BYTES + 5])
def test_a_bomb_stops_at_the_declared_size(compressor: Compressor, size_bytes: int) -> None:
    compressed = bomb(compressor)
    given_out = list[int]()

    with holding_at_most(4 * CHUNK_BYTES), pytest.raises(MalformedRequest, match=f"more than the {size_bytes} bytes"):
        feed_all(Decompression(compressor, size_bytes), compressed, len(compressed), given_out)
    assert sum(given_out) <= size_bytes


@pytest.mark.parametrize("compressor", REAL)
def test_a_bomb_in_a_batch_costs_what_was_declared(compressor: Compressor) -> None:
    compressed = bomb(compressor)

    with holding_at_most(3 * CHUNK_BYTES), pytest.raises(MalformedRequest, match="more than the 1000 bytes"):
        decompress(compressed, compressor, 1000)


@pytest.mark.parametrize("compressor", Compressor)
def test_a_size_beyond_all_memory_costs_nothing(compressor: Compressor) -> None:
    with holding_at_most(3 * CHUNK_BYTES), pytest.raises(MalformedRequest, match="give 3 bytes, less than"):
        decompress(compress(b"abc", compressor), compressor, (1 << 63) - 1)


def zstd_frame(content: bytes, options: dict[int, int], dictionary: zstd.ZstdDict | None = None) -> bytes:
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=dictionary)
    return compressor.compress(content) + compressor.flush()


def test_a_zstd_window_over_128_mib_is_refused() -> None:
    frame = zstd_frame(b"abc", {zstd.CompressionParameter.window_log: 28})

    with pytest.raises(MalformedRequest, match="too much memory"):
        decompress(frame, Compressor.ZSTD, 3)


def test_a_zstd_header_that_asks_for_a_window_of_terabytes_is_refused() -> None:
    # RFC 8878, 3.1.1.1: magic number, descriptor without any flag, window descriptor with exponent 31.
    header = bytes.fromhex("28b52ffd 00 ff")

    with holding_at_most(CHUNK_BYTES), pytest.raises(MalformedRequest, match="too much memory"):
        decompress(header + bytes(100), Compressor.ZSTD, 1 << 40)


def test_a_zstd_frame_that_needs_a_dictionary_is_refused() -> None:
    dictionary = zstd.train_dict([b"sample %d of many that look alike" % number for number in range(2000)], 4096)
    frame = zstd_frame(b"sample 1 of many that look alike", {}, dictionary)
    assert zstd.get_frame_info(frame).dictionary_id == dictionary.dict_id != 0

    with pytest.raises(MalformedRequest, match=r"[Dd]ictionary"):
        decompress(frame, Compressor.ZSTD, 32)


@pytest.mark.parametrize("frame", [zstd.compress(b""), bytes.fromhex("502a4d1800000000")], ids=["empty", "skippable"])
def test_zstd_frames_by_the_thousand_that_bring_nothing_are_refused(frame: bytes) -> None:
    with pytest.raises(MalformedRequest, match=r"1\d\d\d frames in"):
        decompress(frame * 100_000, Compressor.ZSTD, 0)


def test_a_broken_checksum_is_noticed() -> None:
    frame = bytearray(zstd_frame(TEXT, {zstd.CompressionParameter.checksum_flag: 1}))
    frame[-1] ^= 1

    with pytest.raises(MalformedRequest, match="checksum"):
        decompress(bytes(frame), Compressor.ZSTD, len(TEXT))


@pytest.mark.parametrize("compressor", REAL)
@given(data=st.binary(max_size=300), size_bytes=st.integers(0, 100_000))
def test_any_bytes_either_decompress_to_the_size_or_are_refused(
    compressor: Compressor, data: bytes, size_bytes: int
) -> None:
    try:
        blob = decompress(data, compressor, size_bytes)
    except MalformedRequest:
        return
    assert len(blob) == size_bytes


@pytest.mark.parametrize("compressor", REAL)
@given(position=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_never_gives_more_than_was_declared(compressor: Compressor, position: int, flip: int) -> None:
    data = bytearray(compress(TEXT, compressor))
    data[position % len(data)] ^= flip
    given_out = list[int]()
    try:
        feed_all(Decompression(compressor, len(TEXT)), bytes(data), len(data), given_out)
    except MalformedRequest:
        assert sum(given_out) <= len(TEXT)
    else:
        assert sum(given_out) == len(TEXT)
