"""Where blobs are cut (behaviour 54): published vectors, and what holds for every stream."""

from __future__ import annotations

import csv
import hashlib
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas.chunking import Chunker, ChunkingFunction, chunker, function_of_value
from cas.chunking_fastcdc import MASKS, FastCdc
from cas.chunking_gear import BLOCK_BYTES, WINDOW_BYTES, gear_table
from cas.chunking_repmax import SPAN_BYTES, RepMaxCdc

KIB = 1 << 10
DATA = Path(__file__).parent / "data"

VECTORS: dict[str, Callable[[], Chunker]] = {
    "fastcdc seed 0": lambda: FastCdc(16 * KIB, min_bytes=4 * KIB, max_bytes=64 * KIB - 1),
    "fastcdc seed 666": lambda: FastCdc(16 * KIB, min_bytes=4 * KIB, max_bytes=64 * KIB - 1, seed=666),
    "repmax horizon 32768": lambda: RepMaxCdc(4 * KIB, 32 * KIB),
}
"""The rows of data/chunks.csv: those of FastCDC are published with the Remote Execution API, those of RepMaxCDC are what
go-cdc makes of the same picture, as Bazel's tests have them."""


def cut(chunks: Chunker, *pieces: bytes) -> list[bytes]:
    """The chunks of a stream that comes in `pieces`."""
    return [chunk for piece in pieces for chunk in chunks.feed(piece)] + chunks.finish()


def sizes(chunks: list[bytes]) -> list[int]:
    return [len(chunk) for chunk in chunks]


@pytest.mark.parametrize("name", VECTORS)
def test_54_the_published_vectors_pass(name: str) -> None:
    picture = (DATA / "akashita.jpg").read_bytes()
    assert hashlib.sha256(picture).hexdigest() == "d9e749d9367fc908876749d6502eb212fee88c9a94892fb07da5ef3ba8bc39ed"
    with (DATA / "chunks.csv").open(newline="") as file:
        expected = [(int(row["size_bytes"]), row["sha256"]) for row in csv.DictReader(file) if row["cut"] == name]
    assert expected
    found = [(len(chunk), hashlib.sha256(chunk).hexdigest()) for chunk in cut(VECTORS[name](), picture)]
    assert found == expected


def test_the_table_begins_as_that_of_the_paper() -> None:
    table = gear_table()
    assert (len(table), hex(table[0]), hex(table[1])) == (256, "0x3b5d3c7d207e37dc", "0x784d68ba91123086")


def plain_fast_cdc(data: bytes, average_bytes: int, min_bytes: int, max_bytes: int, seed: int) -> list[int]:
    """The sizes of the chunks, by the rule of the paper, byte by byte."""
    power = average_bytes.bit_length() - 1
    table = [int(value) ^ seed for value in gear_table()]
    found = []
    while data:
        seen = data[:max_bytes]
        size_bytes = len(seen)
        if size_bytes > min_bytes:
            gear = 0
            centre = min(average_bytes, size_bytes) // 2 * 2
            for place in range(min_bytes // 2 * 2, size_bytes // 2 * 2):
                gear = (2 * gear + table[seen[place]]) % 2**64
                if gear & MASKS[power + 2 if place < centre else power - 2] == 0:
                    size_bytes = place
                    break
        found.append(size_bytes)
        data = data[size_bytes:]
    return found


def plain_rep_max_cdc(data: bytes, min_bytes: int, horizon_bytes: int) -> list[int]:
    """The sizes of the chunks, by the rule of the definition, position by position."""
    table = [int(value) for value in gear_table()]
    hashes = [0] * (len(data) + 1)
    for place, byte in enumerate(data):
        hashes[place + 1] = (2 * hashes[place] + table[byte]) % 2**64
    found: list[int] = []
    start = 0
    while start < len(data):
        seen_bytes = min(len(data) - start, 2 * min_bytes + horizon_bytes)
        best = start + seen_bytes
        if seen_bytes >= 2 * min_bytes:
            best += 1
            latest = start + seen_bytes - min_bytes
            while best >= start + 2 * min_bytes:
                best = max(range(start + min_bytes, latest + 1), key=lambda position: hashes[position])
                latest = best - min_bytes
        found.append(best - start)
        start = best
    return found


@st.composite
def streams(draw: st.DrawFn) -> list[bytes]:
    """Pieces of random, periodic and constant streams of up to 80 KiB: more than two blocks, and ties in plenty."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    size_bytes = draw(st.integers(0, 80 * KIB))
    period = draw(st.sampled_from([size_bytes, 1, 2, 63, 64, 1000, SPAN_BYTES, BLOCK_BYTES]))
    data = (rng.randbytes(max(period, 1)) * (size_bytes // max(period, 1) + 1))[:size_bytes]
    longest = draw(st.sampled_from([100, 5000, 80 * KIB]))
    pieces = []
    while data:
        piece_bytes = rng.randint(1, longest)
        pieces.append(data[:piece_bytes])
        data = data[piece_bytes:]
    return pieces


@settings(deadline=None, max_examples=60)
@given(
    pieces=streams(),
    power=st.integers(8, 14),
    min_bytes=st.sampled_from([64, 65, 100, 256]),
    odd_bytes=st.integers(0, 1),
    seed=st.sampled_from([0, 1, 666, 2**32 - 1]),
)
def test_fast_cdc_cuts_as_the_plain_rule_does_however_the_stream_comes(
    pieces: list[bytes], power: int, min_bytes: int, odd_bytes: int, seed: int
) -> None:
    average_bytes, max_bytes = 1 << power, (4 << power) - odd_bytes
    data = b"".join(pieces)
    chunks = cut(FastCdc(average_bytes, min_bytes=min_bytes, max_bytes=max_bytes, seed=seed), *pieces)
    assert b"".join(chunks) == data
    assert all(min_bytes - 1 <= len(chunk) for chunk in chunks[:-1])
    assert all(0 < len(chunk) <= max_bytes for chunk in chunks)
    assert sizes(chunks) == plain_fast_cdc(data, average_bytes, min_bytes, max_bytes, seed)


def test_fast_cdc_does_not_look_at_a_last_byte_without_a_second() -> None:
    """The loop of the paper takes two bytes at a time. A cut before the last of 67 bytes is seen only if a 68th comes."""
    table = [int(value) for value in gear_table()]
    mask = MASKS[10] | MASKS[6]
    tails = (number.to_bytes(3, "big") for number in range(1 << 24))
    tail = next(
        tail
        for tail in tails
        if (4 * table[tail[0]] + 2 * table[tail[1]] + table[tail[2]]) & mask == 0
        and (2 * table[tail[0]] + table[tail[1]]) & MASKS[10]
        and table[tail[0]] & MASKS[10]
    )
    assert sizes(cut(FastCdc(256), bytes(64) + tail)) == [67]
    assert sizes(cut(FastCdc(256), bytes(64) + tail + b"x")) == [66, 2]


@settings(deadline=None, max_examples=60)
@given(
    pieces=streams(),
    min_bytes=st.sampled_from([64, 65, 500, SPAN_BYTES, SPAN_BYTES + 1, 9000]),
    horizon=st.sampled_from([0, 1, 300, 8 * KIB, 40 * KIB]),
)
def test_rep_max_cdc_cuts_as_the_plain_rule_does_however_the_stream_comes(
    pieces: list[bytes], min_bytes: int, horizon: int
) -> None:
    data = b"".join(pieces)
    chunks = cut(RepMaxCdc(min_bytes, horizon), *pieces)
    assert b"".join(chunks) == data
    if len(data) >= min_bytes:
        assert all(min_bytes <= len(chunk) < 2 * min_bytes for chunk in chunks)
    assert sizes(chunks) == plain_rep_max_cdc(data, min_bytes, horizon)


def test_without_a_horizon_the_chunks_are_even() -> None:
    assert sizes(cut(RepMaxCdc(1000, 0), bytes(range(250)) * 30)) == [1000] * 6 + [1500]


FUNCTIONS = pytest.mark.parametrize("function", list(ChunkingFunction))
ADVERTISED = {
    # function: smallest, largest, and roughly the usual size of a chunk
    ChunkingFunction.FAST_CDC_2020: (128 * KIB, 2048 * KIB, 615 * KIB),
    ChunkingFunction.REP_MAX_CDC: (256 * KIB, 512 * KIB - 1, 342 * KIB),
}


def megabytes(count: int, seed: int = 1) -> Iterator[bytes]:
    """Random pieces of 1 MiB."""
    rng = random.Random(seed)
    return (rng.randbytes(1 << 20) for _ in range(count))


@FUNCTIONS
def test_54_the_chunks_have_the_sizes_that_are_advertised(function: ChunkingFunction) -> None:
    smallest, largest, usual = ADVERTISED[function]
    found = sizes(cut(chunker(function), *megabytes(48)))
    assert sum(found) == 48 << 20
    assert all(smallest <= size_bytes <= largest for size_bytes in found[:-1])
    assert found[-1] <= largest <= function.max_chunk_bytes
    assert 0.75 * usual < sum(found) / len(found) < 1.25 * usual


@FUNCTIONS
def test_an_insertion_changes_few_chunks(function: ChunkingFunction) -> None:
    before = b"".join(megabytes(24))
    chunks = cut(chunker(function), before)
    for place in (0, 5_000_000, len(before)):
        after = before[:place] + b"inserted" + before[place:]
        changed = [chunk for chunk in cut(chunker(function), after) if chunk not in chunks]
        assert 1 <= len(changed) <= 8
        assert len(chunks) > 3 * len(changed)


@FUNCTIONS
def test_no_more_is_held_than_the_next_cut_needs(function: ChunkingFunction) -> None:
    """Whatever comes, the chunks leave at once; constant bytes are the longest chunks there are."""
    for pieces in (list(megabytes(20)), [bytes(1 << 20)] * 20):
        chunks = chunker(function)
        held_bytes = 0
        for piece in pieces:
            held_bytes += len(piece) - sum(sizes(chunks.feed(piece)))
            assert held_bytes < 3 << 20
        assert sum(sizes(chunks.finish())) == held_bytes


@FUNCTIONS
def test_a_stream_without_a_byte_has_no_chunk(function: ChunkingFunction) -> None:
    assert cut(chunker(function), b"", b"") == []


@FUNCTIONS
def test_blobs_below_the_bound_are_not_cut_but_for_fast_cdc_by_agreement(function: ChunkingFunction) -> None:
    """RepMaxCDC cannot cut them. FastCDC could; that they stay whole is up to who calls the chunker."""
    data = b"".join(megabytes(2))[: function.whole_below_bytes - 1]
    pieces = cut(chunker(function), data)
    assert (len(pieces) == 1) == (function is ChunkingFunction.REP_MAX_CDC)


@pytest.mark.parametrize(
    ("value", "function"),
    [
        (0, ChunkingFunction.FAST_CDC_2020),
        (1, ChunkingFunction.FAST_CDC_2020),
        (2, ChunkingFunction.REP_MAX_CDC),
        (3, ChunkingFunction.FAST_CDC_2020),
        (2**31 - 1, ChunkingFunction.FAST_CDC_2020),
        (-1, ChunkingFunction.FAST_CDC_2020),
    ],
)
def test_a_function_that_is_not_known_is_taken_as_no_preference(value: int, function: ChunkingFunction) -> None:
    assert function_of_value(value) is function


@pytest.mark.parametrize("average_bytes", [0, -1, 1, 128, 1000, 512 * KIB + 1, 8 << 20])
def test_fast_cdc_refuses_averages_it_has_no_masks_for(average_bytes: int) -> None:
    with pytest.raises(
        ValueError, match=f"average_bytes is {average_bytes}; expected a power of two from 256 to 4194304"
    ):
        FastCdc(average_bytes)


@pytest.mark.parametrize(("min_bytes", "max_bytes"), [(WINDOW_BYTES - 1, 4096), (2048, 4096), (64, 1024), (64, 1000)])
def test_fast_cdc_refuses_bounds_that_do_not_hold_the_average(min_bytes: int, max_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"min_bytes is {min_bytes} and max_bytes {max_bytes}; expected 64 <= "):
        FastCdc(1024, min_bytes=min_bytes, max_bytes=max_bytes)


def test_rep_max_cdc_refuses_parameters_out_of_range() -> None:
    with pytest.raises(ValueError, match="min_bytes is 63; expected at least 64"):
        RepMaxCdc(63, 0)
    with pytest.raises(ValueError, match="horizon_bytes is -1; expected at least 0"):
        RepMaxCdc(64, -1)


def test_the_masks_grow_harder_with_the_size() -> None:
    bits = [mask.bit_count() for _, mask in sorted(MASKS.items())]
    assert all(fewer <= more for fewer, more in pairwise(bits[4:]))
    assert bits[10 - 6 :] == list(range(10, 25))
    assert max(MASKS.values()) < 1 << 48
