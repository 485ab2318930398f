"""How fast this machine hashes and compresses.

    python -m bench.hashing [--mebibytes N]

One line for each digest function and each compressor: GB/s (1e9 bytes of blob a second) of one thread, the best of
three turns, in pieces of CHUNK_BYTES as large blobs are moved. For the compressors the data are the code of the Python
standard library, about as repetitive as the sources and outputs of a build, and the share that is left is printed too.
The last lines are the microseconds that one blob of 1 KiB takes in a batch.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from cas.compression import Compression, Compressor, Decompression, compress, decompress
from cas.hashing import DigestFunction, hash_of, hasher
from cas.store import CHUNK_BYTES

TURNS = 3
SMALL_BYTES = 1024
SMALL_BLOBS = 2000


def best_seconds(work: Callable[[], object]) -> float:
    """The shortest of TURNS runs: whatever else the machine does only makes a run longer."""
    seconds = []
    for _ in range(TURNS):
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return min(seconds)


def code_of_the_standard_library(size_bytes: int) -> bytes:
    """`size_bytes` of Python source, repeated if there is not enough."""
    collected = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
        collected += path.read_bytes()
        if len(collected) >= size_bytes:
            break
    while len(collected) < size_bytes:
        collected += collected
    return bytes(collected[:size_bytes])


def chunks_of(blob: bytes) -> Sequence[bytes]:
    return [blob[start : start + CHUNK_BYTES] for start in range(0, len(blob), CHUNK_BYTES)]


def hash_stream(function: DigestFunction, chunks: Sequence[bytes], size_bytes: int) -> str:
    started = hasher(function, size_bytes)
    for chunk in chunks:
        started.update(chunk)
    return started.hexdigest()


def compress_stream(compressor: Compressor, chunks: Sequence[bytes]) -> list[bytes]:
    compression = Compression(compressor)
    return [*(compression.feed(chunk) for chunk in chunks), compression.finish()]


def decompress_stream(compressor: Compressor, compressed: Sequence[bytes], size_bytes: int) -> None:
    decompression = Decompression(compressor, size_bytes)
    for data in compressed:
        for _ in decompression.feed(data):
            pass
    decompression.finish()


def measure_hashes(blob: bytes) -> None:
    """Print how fast large blobs are hashed."""
    chunks = chunks_of(blob)
    print(f"{'hash':12} {'GB/s':>8}")
    for function in DigestFunction:
        seconds = best_seconds(partial(hash_stream, function, chunks, len(blob)))
        print(f"{function.name:12} {len(blob) / 1e9 / seconds:8.2f}")


def measure_compressors(blob: bytes) -> None:
    """Print how fast large blobs are compressed and decompressed, and what is left of them."""
    chunks = chunks_of(blob)
    print(f"\n{'compressor':12} {'in GB/s':>8} {'out GB/s':>8} {'left':>8}")
    for compressor in Compressor:
        compressed = b"".join(compress_stream(compressor, chunks))
        in_seconds = best_seconds(partial(compress_stream, compressor, chunks))
        out_seconds = best_seconds(partial(decompress_stream, compressor, chunks_of(compressed), len(blob)))
        speeds = f"{len(blob) / 1e9 / in_seconds:8.2f} {len(blob) / 1e9 / out_seconds:8.2f}"
        print(f"{compressor.name:12} {speeds} {len(compressed) / len(blob):8.1%}")


def measure_small_blobs(blob: bytes) -> None:
    """Print what one blob of SMALL_BYTES costs."""
    small = blob[:SMALL_BYTES]
    print(f"\n{f'{SMALL_BYTES} bytes':12} {'in µs':>8} {'out µs':>8}")
    for function in DigestFunction:
        seconds = best_seconds(partial(repeat_call, partial(hash_of, small, function)))
        print(f"{function.name:12} {seconds * 1e6 / SMALL_BLOBS:8.1f}")
    for compressor in Compressor:
        compressed = compress(small, compressor)
        in_seconds = best_seconds(partial(repeat_call, partial(compress, small, compressor)))
        out_seconds = best_seconds(partial(repeat_call, partial(decompress, compressed, compressor, len(small))))
        print(f"{compressor.name:12} {in_seconds * 1e6 / SMALL_BLOBS:8.1f} {out_seconds * 1e6 / SMALL_BLOBS:8.1f}")


def repeat_call(work: Callable[[], object]) -> None:
    for _ in range(SMALL_BLOBS):
        work()


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast this machine hashes and compresses.")
    parser.add_argument("--mebibytes", type=int, default=64, help="size of the large blob (default: 64)")
    blob = code_of_the_standard_library(parser.parse_args().mebibytes << 20)
    measure_hashes(blob)
    measure_compressors(blob)
    measure_small_blobs(blob)


if __name__ == "__main__":
    main()
