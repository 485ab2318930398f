"""Blobs and digests of the kit. Random blobs are new to every server, so that a warm one passes for nothing."""

from __future__ import annotations

import os
import sys
import zlib

import brotli

from cas.compression import compress, compressor_of_value
from cas.hashing import function_of_value, hash_of
from integration.conformance.case import NotSupported
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SHA256 = re_pb2.DigestFunction.SHA256
NAMED_FUNCTIONS: dict[int, str] = {
    re_pb2.DigestFunction.SHA256TREE: "sha256tree",
    re_pb2.DigestFunction.BLAKE3: "blake3",
    re_pb2.DigestFunction.GITSHA1: "gitsha1",
}
"""Functions whose name resource names must spell, because the length of the hash does not tell them."""
COMPRESSOR_SEGMENTS: dict[int, str] = {
    re_pb2.Compressor.ZSTD: "zstd",
    re_pb2.Compressor.DEFLATE: "deflate",
    re_pb2.Compressor.BROTLI: "brotli",
}

Key = tuple[str, int]


def fresh(size_bytes: int = 100) -> bytes:
    """Bytes that no server has seen."""
    return os.urandom(size_bytes)


def text(lines: int = 4000) -> bytes:
    """Bytes that no server has seen, but that compress well."""
    return (os.urandom(12).hex() + " some words that come again and again\n").encode() * lines


def digest_of(data: bytes, function: int = SHA256) -> re_pb2.Digest:
    """The digest of `data`. Raises NotSupported for a function that the kit itself cannot compute."""
    known = function_of_value(function)
    if known is None:
        raise NotSupported(f"the kit cannot compute digest function {re_pb2.DigestFunction.Value.Name(function)}")
    return re_pb2.Digest(hash=hash_of(data, known), size_bytes=len(data))


def key(digest: re_pb2.Digest) -> Key:
    """A digest as something that can be in a set."""
    return digest.hash, digest.size_bytes


def show(digest: re_pb2.Digest) -> str:
    """A digest for a person."""
    return f"{digest.hash[:12]}…/{digest.size_bytes}"


def resource(digest: re_pb2.Digest, *, function: int = SHA256, compressor: int = 0) -> str:
    """The end of a resource name: blobs/..., compressed-blobs/..."""
    kind = f"compressed-blobs/{COMPRESSOR_SEGMENTS[compressor]}" if compressor else "blobs"
    named = f"/{NAMED_FUNCTIONS[function]}" if function in NAMED_FUNCTIONS else ""
    return f"{kind}{named}/{digest.hash}/{digest.size_bytes}"


def packed(data: bytes, compressor: int) -> bytes:
    """`data`, compressed."""
    return compress(data, compressor_of_value(compressor))


def unpacked(data: bytes, compressor: int) -> bytes:
    """What `packed` was given; any number of bytes."""
    match compressor:
        case re_pb2.Compressor.ZSTD:
            return bytes(zstd.decompress(data))
        case re_pb2.Compressor.DEFLATE:
            return zlib.decompress(data, -zlib.MAX_WBITS)
        case re_pb2.Compressor.BROTLI:
            return bytes(brotli.decompress(data))
        case _:
            return data
