"""Behaviour 43: the resource names of ByteStream."""

from __future__ import annotations

import uuid

from integration.conformance.blobs import NAMED_FUNCTIONS, digest_of, fresh, packed, resource, text, unpacked
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import INVALID_ARGUMENT, NOT_FOUND, expect_equal, expect_refused

RESOURCE_NAME_HEADER = "build.bazel.remote.execution.v2.resource-name"


@behaviour(43, "the instance name comes before everything else, slashes and all")
async def instance_prefix(client: Client) -> None:
    """The instance of the run, and another one if the kit knows any."""
    for instance in dict.fromkeys((client.options.instance, client.options.other_instance)):
        if instance is None:
            continue
        prefix = f"{instance}/" if instance else ""
        data = fresh()
        digest = digest_of(data)
        committed = await client.write(data, name=f"{prefix}uploads/{uuid.uuid4()}/{resource(digest)}")
        expect_equal(committed, len(data), f"committed_size of a write to instance {instance!r}")
        got = await client.read(f"{prefix}{resource(digest)}")
        expect_equal(got == data, True, f"the blob comes back from instance {instance!r}")


@behaviour(43, "a header may repeat the resource name")
async def repeated_in_header(client: Client) -> None:
    """For proxies that route by it; it says the same as the message and changes nothing."""
    data = fresh()
    name = client.upload_name(digest_of(data))
    committed = await client.write(data, name=name, metadata=((RESOURCE_NAME_HEADER, name),))
    expect_equal(committed, len(data), "committed_size of a write with the header")
    expect_equal(await client.fetch(digest_of(data)) == data, True, "the blob comes back")


@behaviour(43, "an upload's name may go on after the size")
async def trailing_metadata(client: Client) -> None:
    """Anything a client wants to leave there, such as a file name; it is not part of the blob's name."""
    for tail in ("/foo/bar.cc", "/uploads/blobs/1", "/"):
        data = fresh()
        name = client.upload_name(digest_of(data)) + tail
        expect_equal(await client.write(data, name=name), len(data), f"committed_size with {tail!r} after the size")
        expect_equal(await client.fetch(digest_of(data)) == data, True, "the blob comes back")


@behaviour(43, "the digest function may be named where the hash does not tell it")
async def function_segment(client: Client) -> None:
    """blobs/blake3/{hash}/{size} and the like."""
    functions = [number for number in client.cache.digest_functions if number in NAMED_FUNCTIONS]
    if not functions:
        raise NotSupported("no digest function that must be named is advertised")
    for function in functions:
        data = fresh(5000)
        digest = digest_of(data, function)
        segment = NAMED_FUNCTIONS[function]
        expect_equal(
            await client.write(data, digest=digest, function=function), len(data), f"committed_size with {segment}"
        )
        expect_equal(await client.fetch(digest, function=function) == data, True, f"the {segment} blob comes back")
        expect_equal(
            await client.missing([digest], function=function), set(), f"missing {segment} blobs after the write"
        )


@behaviour(43, "compressed-blobs/{compressor} names the compression of the bytes on the wire")
async def compressed(client: Client) -> None:
    """The digest is that of the uncompressed blob."""
    for compressor in client.compressors():
        data = text()
        digest = digest_of(data)
        await client.write(packed(data, compressor), name=client.upload_name(digest, compressor=compressor))
        expect_equal(
            await client.fetch(digest) == data, True, f"a blob written with compressor {compressor} comes back"
        )
        got = await client.read(client.blob_name(digest, compressor=compressor))
        expect_equal(unpacked(got, compressor) == data, True, f"a blob read with compressor {compressor} is right")


@behaviour(43, "names that are none are refused")
async def malformed(client: Client) -> None:
    """Parts that are missing, sizes that are no numbers, compressors that do not exist, empty uuids."""
    digest = digest_of(fresh())
    for name in (
        "", "blobs", f"blobs/{digest.hash}", f"blobs/{digest.hash}/ten", f"blobs/{digest.hash}/-5", f"blob/{digest.hash}/5",
        f"compressed-blobs/{digest.hash}/5", f"compressed-blobs/middle-out/{digest.hash}/5", f"blobs/{digest.hash}/5/more",
        f"blobs/{digest.hash}/99999999999999999999999",
    ):  # fmt: skip
        await expect_refused(client.read(name), f"Read of {name[:60]!r}", INVALID_ARGUMENT, NOT_FOUND)
    for name in (
        "",
        f"uploads/{digest.hash}/5",
        f"uploads//blobs/{digest.hash}/5",
        f"uploads/{uuid.uuid4()}/blobs/x/5",
    ):
        await expect_refused(client.write(b"12345", name=name), f"Write to {name[:60]!r}", INVALID_ARGUMENT)


@behaviour(43, "keywords inside an instance name are refused")
async def keywords(client: Client) -> None:
    """`uploads` and `blobs` there would make names ambiguous; at best the instance is not found."""
    data = fresh(5)
    digest = digest_of(data)
    for instance in ("a/uploads", "blobs/b", "x/compressed-blobs/y", "actionResults", "operations/o", "capabilities"):
        what = f"a write to the instance {instance!r}"
        name = f"{instance}/uploads/{uuid.uuid4()}/{resource(digest)}"
        await expect_refused(client.write(data, name=name), what, INVALID_ARGUMENT, NOT_FOUND)
    await client.expect_missing(digest)
