"""What has been seen of one kind of action: how long it runs, how much memory it takes. Decays, so that it follows changes.

Durations are counted in a histogram whose buckets grow by a quarter of an octave (19 %), which is as exact as a decision about
waiting needs, and takes no more room for a million runs than for ten.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Final, Self

SHORTEST_SECONDS: Final = 0.001
LONGEST_SECONDS: Final = 7 * 86_400.0
"""A worker that claims more is broken."""
LARGEST_BYTES: Final = 1 << 44
"""The same of memory: 16 TiB."""

_STEPS_PER_OCTAVE: Final = 4
_LAST_BUCKET: Final = math.ceil(math.log2(LONGEST_SECONDS / SHORTEST_SECONDS) * _STEPS_PER_OCTAVE)
_SMOOTHING: Final = 0.1
"""The weight of the newest run in the mean, once there are more than ten."""
_SINKING: Final = 0.05
"""How fast the peak of memory follows runs that take less. It rises at once: too little memory kills, too much only waits."""
_FULL: Final = 400.0
"""Runs in the histogram; then all counts are halved, so that what is 1,000 runs old has next to no say."""
_MOST_SAMPLES: Final = 1 << 31

_HEAD: Final = struct.Struct("<BddQ")
_BUCKET: Final = struct.Struct("<Bf")
_VERSION: Final = 1


@dataclass(slots=True)
class Learned:
    """Starts empty."""

    mean_seconds: float = 0.0
    peak_memory_bytes: float = 0.0
    """0 as long as no worker has told."""
    samples: int = 0
    """Runs so far, old ones included."""
    _counts: dict[int, float] = field(default_factory=dict)
    """Runs by bucket."""
    _total: float = 0.0

    def learn(self, seconds: float, peak_memory_bytes: int, *, spread: bool = True) -> None:
        """One more run; `spread` says whether the histogram is kept too. What cannot be true is cut to what can."""
        seconds = min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
        peak = float(min(max(peak_memory_bytes, 0), LARGEST_BYTES))
        self.samples = min(self.samples + 1, _MOST_SAMPLES)
        self.mean_seconds += (seconds - self.mean_seconds) * max(_SMOOTHING, 1 / self.samples)
        if peak > 0:
            sunk = self.peak_memory_bytes + (peak - self.peak_memory_bytes) * _SINKING
            self.peak_memory_bytes = max(peak, sunk)
        if spread:
            bucket = _bucket_of(seconds)
            self._counts[bucket] = self._counts.get(bucket, 0.0) + 1.0
            self._total += 1.0
            if self._total >= _FULL:
                self._counts = {bucket: count / 2 for bucket, count in self._counts.items() if count >= 0.1}
                self._total = sum(self._counts.values())

    def quantile_seconds(self, share: float) -> float:
        """What `share` of the runs have not exceeded, rounded up to the end of its bucket."""
        beyond = self._total * (1.0 - share)
        for bucket in sorted(self._counts, reverse=True):
            beyond -= self._counts[bucket]
            if beyond < 0:
                return _end_of(bucket)
        return SHORTEST_SECONDS

    def to_bytes(self) -> bytes:
        """Little-endian: version 1 (u8), mean seconds (f64), peak bytes (f64), samples (u64), then for each bucket its number
        (u8) and count (f32)."""
        head = _HEAD.pack(_VERSION, self.mean_seconds, self.peak_memory_bytes, self.samples)
        return head + b"".join(_BUCKET.pack(*item) for item in self._counts.items())

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises ValueError for what this version did not write."""
        if len(data) < _HEAD.size or data[0] != _VERSION or (len(data) - _HEAD.size) % _BUCKET.size:
            raise ValueError(
                f"{len(data)} bytes that begin with {data[:1].hex()} are no statistics of version {_VERSION}"
            )
        _, mean, peak, samples = _HEAD.unpack_from(data)
        counts: dict[int, float] = dict(_BUCKET.iter_unpack(data[_HEAD.size :]))
        if not (
            SHORTEST_SECONDS <= mean <= LONGEST_SECONDS
            and 0 <= peak <= LARGEST_BYTES
            and 0 < samples <= _MOST_SAMPLES
            and all(bucket <= _LAST_BUCKET and 0 <= count <= _FULL for bucket, count in counts.items())
        ):
            raise ValueError(f"statistics of {samples} runs of {mean:g} s and {peak:g} bytes cannot be true")
        return cls(mean, peak, samples, counts, sum(counts.values()))


def _bucket_of(seconds: float) -> int:
    return max(0, math.ceil(math.log2(seconds / SHORTEST_SECONDS) * _STEPS_PER_OCTAVE))


def _end_of(bucket: int) -> float:
    return SHORTEST_SECONDS * math.exp2(bucket / _STEPS_PER_OCTAVE)
