"""Content-defined chunking: where a blob is cut so that a change moves few of the cuts (REAPI, ChunkingFunction).

Chunkers only cut; who reads the blob and keeps the chunks is decided in cas/chunking_split.py. The parameters are those
that the server advertises, and clients that cut blobs themselves use the same, so that the chunks of both are the same.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Protocol

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

KIB: Final = 1 << 10

FAST_CDC_AVERAGE_BYTES: Final = 512 * KIB
"""REAPI, FastCdc2020Params.avg_chunk_size_bytes: the value that is recommended, and best for the outputs of builds."""

FAST_CDC_SEED: Final = 0
"""REAPI, FastCdc2020Params.seed: the value that is recommended. Another one would share no chunks with other clients."""

REP_MAX_MIN_BYTES: Final = 256 * KIB
"""REAPI, RepMaxCdcParams.min_chunk_size_bytes: the value that is recommended."""

REP_MAX_HORIZON_BYTES: Final = 8 * REP_MAX_MIN_BYTES
"""REAPI, RepMaxCdcParams.horizon_size_bytes: the value that is recommended."""


class ChunkingFunction(Enum):
    """The functions that this server offers, with their numbers in REAPI ChunkingFunction.Value."""

    FAST_CDC_2020 = re_pb2.ChunkingFunction.FAST_CDC_2020
    REP_MAX_CDC = re_pb2.ChunkingFunction.REP_MAX_CDC

    @property
    def whole_below_bytes(self) -> int:
        """Blobs smaller than this are one chunk: themselves.

        REAPI, FastCdc2020Params: blobs below the maximum are not to be chunked. RepMaxCdcParams: with less than twice the
        minimum there is no room for a cut.
        """
        return 4 * FAST_CDC_AVERAGE_BYTES if self is ChunkingFunction.FAST_CDC_2020 else 2 * REP_MAX_MIN_BYTES

    @property
    def max_chunk_bytes(self) -> int:
        """No chunk is larger."""
        return self.whole_below_bytes


def function_of_value(value: int) -> ChunkingFunction:
    """The function for a request that names `value`.

    FastCDC if it names none, or one that is not known here: what a request names is a wish, and the answer says which
    function was used (REAPI, SplitBlobRequest.chunking_function).
    """
    return _BY_VALUE.get(value, ChunkingFunction.FAST_CDC_2020)


_BY_VALUE: Final[dict[int, ChunkingFunction]] = {function.value: function for function in ChunkingFunction}


class Chunker(Protocol):
    """Cuts one stream of bytes. The cuts depend on the bytes alone, not on the pieces in which they come."""

    def feed(self, data: bytes) -> list[bytes]:
        """The chunks that are known to be complete after `data`. Long inputs let other threads run meanwhile."""
        ...

    def finish(self) -> list[bytes]:
        """The chunks that are left at the end; none if there was not a byte."""
        ...


def chunker(function: ChunkingFunction) -> Chunker:
    """A chunker with the parameters that this server advertises.

    It holds at most the two or three MiB that the next cut depends on and the pieces fed. numpy is loaded by the first.
    """
    from cas.chunking_fastcdc import FastCdc
    from cas.chunking_repmax import RepMaxCdc

    if function is ChunkingFunction.FAST_CDC_2020:
        return FastCdc(FAST_CDC_AVERAGE_BYTES, seed=FAST_CDC_SEED)
    return RepMaxCdc(REP_MAX_MIN_BYTES, REP_MAX_HORIZON_BYTES)
