"""Remote Asset: what is pushed is found, what is gone is not, and how each failure is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from google.rpc import error_details_pb2

from cas.assets import AssetNotFound, Presence
from cas.assets_config import AssetSettings
from cas.assets_disk import DiskAssets
from cas.context import Identity, RequestContext
from cas.digest import Digest
from cas.errors import (
    Code,
    FailedPrecondition,
    InputsMissing,
    MalformedRequest,
    NotAllowed,
    NotFound,
    QualifiersNotSupported,
)
from cas.fetch import Fetcher
from cas.fetch_failure import FetchFailed
from cas.fetch_origins import OutsideOrigins
from cas.hashing import DigestFunction
from cas.services.asset import MAX_REFERENCES, MAX_URI_BYTES, MAX_URIS, FetchService, PushService
from protos.build.bazel.remote.asset.v1 import remote_asset_pb2 as asset_pb2
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

from .cache import Cache

ANYONE = RequestContext()


class Outside:
    """The Internet: content or a failure by URL."""

    def __init__(self) -> None:
        self.content: dict[str, bytes | FetchFailed] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def open(
        self, text: str, headers: Sequence[tuple[str, str]], *, encoded_allowed: bool
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((text, dict(headers)))
        await self.gate.wait()
        found = self.content.get(text, FetchFailed(Code.NOT_FOUND, f"{text} answered 404"))
        if isinstance(found, FetchFailed):
            raise found

        async def pieces() -> AsyncIterator[bytes]:
            yield found

        yield pieces()


class Services:
    def __init__(self, cache: Cache, assets: DiskAssets, outside: Outside, fetcher: Fetcher | None = None) -> None:
        self.cache = cache
        self.outside = outside
        self.now = 1000.0
        presence = Presence()
        origins = OutsideOrigins(fetcher) if fetcher is not None else None
        self.fetch = FetchService(cache.instances, assets, presence, origins)
        self.push = PushService(cache.instances, assets, presence, lambda: self.now)

    async def push_blob(self, content: bytes = b"content", **fields: Any) -> Digest:
        (digest,) = await self.cache.add(content)
        await self.push.PushBlob(blob_push(digest, **fields), ANYONE)
        return digest

    async def fetch_blob(self, *uris: str, context: RequestContext = ANYONE, **fields: Any) -> Any:
        return await self.fetch.FetchBlob(blob_fetch(*uris, **fields), context)


def qualifiers(values: Mapping[str, str]) -> list[asset_pb2.Qualifier]:
    return [asset_pb2.Qualifier(name=name, value=value) for name, value in values.items()]


def blob_push(digest: Digest, **fields: Any) -> asset_pb2.PushBlobRequest:
    named = {"instance_name": "main", "uris": ["urn:a"]} | fields
    named["qualifiers"] = qualifiers(named.get("qualifiers", {}))
    return asset_pb2.PushBlobRequest(blob_digest=digest.to_proto(), **named)


def blob_fetch(*uris: str, **fields: Any) -> asset_pb2.FetchBlobRequest:
    named = {"instance_name": "main"} | fields
    named["qualifiers"] = qualifiers(named.get("qualifiers", {}))
    return asset_pb2.FetchBlobRequest(uris=uris, **named)


def at(seconds: float) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


@pytest.fixture
def assets() -> Iterator[DiskAssets]:
    now = [1000.0]
    with DiskAssets(None, max_entries=1000, max_bytes=10 << 20, clock=lambda: now[0]) as opened:
        opened.now = now  # type: ignore[attr-defined]
        yield opened


@pytest.fixture
def pushed(cache: Cache, assets: DiskAssets) -> Services:
    """A server that fetches nothing."""
    return Services(cache, assets, Outside())


@pytest.fixture
async def fetching(cache: Cache, assets: DiskAssets, tmp_path: Path) -> AsyncIterator[Services]:
    """A server that fetches from `outside`."""
    outside = Outside()
    settings = AssetSettings(fetch=True)
    async with Fetcher(settings, outside, tmp_path / "spool", clock=lambda: 2000.0) as fetcher:
        yield Services(cache, assets, outside, fetcher)


# Pushed.


async def test_the_probes_of_buildstream_are_invalid_arguments(pushed: Services) -> None:
    """It takes any other answer for a server that cannot be used."""
    probes: list[tuple[Any, Any]] = [
        (pushed.fetch.FetchBlob, asset_pb2.FetchBlobRequest()),
        (pushed.fetch.FetchDirectory, asset_pb2.FetchDirectoryRequest()),
        (pushed.push.PushBlob, asset_pb2.PushBlobRequest()),
        (pushed.push.PushDirectory, asset_pb2.PushDirectoryRequest()),
    ]
    for call, request in probes:
        with pytest.raises(MalformedRequest, match="uris"):
            await call(request, ANYONE)


async def test_a_pushed_blob_is_found_under_each_of_its_uris_with_its_qualifiers(pushed: Services) -> None:
    digest = await pushed.push_blob(uris=["urn:a", "urn:b"], qualifiers={"x": "1", "y": "2"})
    for uri in ("urn:a", "urn:b"):
        found = await pushed.fetch_blob("urn:unknown", uri, qualifiers={"y": "2", "x": "1"})
        assert found.blob_digest == digest.to_proto()
        assert found.uri == uri
        assert found.status.code == 0
        assert found.digest_function == re_pb2.DigestFunction.SHA256
        assert {(q.name, q.value) for q in found.qualifiers} == {("x", "1"), ("y", "2")}
    for other in ({}, {"x": "1"}, {"x": "1", "y": "3"}, {"x": "1", "y": "2", "z": ""}):
        with pytest.raises(AssetNotFound):
            await pushed.fetch_blob("urn:a", qualifiers=other)


async def test_a_miss_ends_the_call(pushed: Services) -> None:
    with pytest.raises(NotFound):
        await pushed.fetch_blob("urn:a")
    with pytest.raises(NotFound):
        await pushed.fetch_blob("https://host.test/")
    assert pushed.outside.asked == []


async def test_each_instance_has_its_own_assets(pushed: Services) -> None:
    await pushed.push_blob()
    with pytest.raises(AssetNotFound):
        await pushed.fetch_blob("urn:a", instance_name="")
    with pytest.raises(MalformedRequest):
        await pushed.fetch_blob("urn:a", instance_name="elsewhere")


async def test_a_blob_is_no_directory(pushed: Services) -> None:
    await pushed.push_blob()
    with pytest.raises(AssetNotFound):
        await pushed.fetch.FetchDirectory(asset_pb2.FetchDirectoryRequest(instance_name="main", uris=["urn:a"]), ANYONE)


async def test_an_asset_ends_when_it_was_said_to(pushed: Services, assets: DiskAssets) -> None:
    await pushed.push_blob(expire_at=at(1001.5))
    await pushed.fetch_blob("urn:a")
    assets.now[0] = 1001.5  # type: ignore[attr-defined]
    with pytest.raises(AssetNotFound):
        await pushed.fetch_blob("urn:a")


async def test_an_expiry_can_be_changed_by_another_push(pushed: Services, assets: DiskAssets) -> None:
    await pushed.push_blob(expire_at=at(1001))
    await pushed.push_blob()
    assets.now[0] = 5000.0  # type: ignore[attr-defined]
    await pushed.fetch_blob("urn:a")


async def test_content_older_than_accepted_is_not_found(pushed: Services) -> None:
    await pushed.push_blob()
    await pushed.fetch_blob("urn:a", oldest_content_accepted=at(1000))
    with pytest.raises(AssetNotFound):
        await pushed.fetch_blob("urn:a", oldest_content_accepted=at(1000.5))


async def test_an_asset_goes_with_its_blob(pushed: Services) -> None:
    digest = await pushed.push_blob()
    del pushed.cache.memory.blobs[digest]
    pushed.cache.memory._ledger.forget(digest, pushed.cache.memory._ledger._entries[digest])
    with pytest.raises(AssetNotFound):
        await pushed.fetch_blob("urn:a")


async def test_an_asset_of_another_function_than_asked_for_is_not_found(pushed: Services) -> None:
    (digest,) = await pushed.cache.add(b"content", function=DigestFunction.BLAKE3)
    request = blob_push(digest)
    request.digest_function = re_pb2.DigestFunction.BLAKE3
    await pushed.push.PushBlob(request, ANYONE)
    found = await pushed.fetch_blob("urn:a", digest_function=re_pb2.DigestFunction.BLAKE3)
    assert found.digest_function == re_pb2.DigestFunction.BLAKE3
    with pytest.raises(AssetNotFound):
        await pushed.fetch_blob("urn:a", digest_function=re_pb2.DigestFunction.SHA256)


async def directory(cache: Cache) -> tuple[Digest, Digest]:
    """A directory in the store, and the file in it."""
    (file,) = await cache.add(b"in the directory")
    encoded = re_pb2.Directory(files=[re_pb2.FileNode(name="file", digest=file.to_proto())]).SerializeToString()
    (root,) = await cache.add(encoded)
    return root, file


async def test_a_pushed_directory_is_found_while_all_of_it_is_there(pushed: Services) -> None:
    root, file = await directory(pushed.cache)
    push = asset_pb2.PushDirectoryRequest(
        instance_name="main", uris=["urn:a", "urn:b"], root_directory_digest=root.to_proto()
    )
    await pushed.push.PushDirectory(push, ANYONE)
    fetch = asset_pb2.FetchDirectoryRequest(instance_name="main", uris=["urn:b"])
    found = await pushed.fetch.FetchDirectory(fetch, ANYONE)
    assert found.root_directory_digest == root.to_proto()
    assert (found.uri, found.digest_function) == ("urn:b", re_pb2.DigestFunction.SHA256)

    del pushed.cache.memory.blobs[file]
    pushed.cache.memory._ledger.forget(file, pushed.cache.memory._ledger._entries[file])
    with pytest.raises(AssetNotFound):
        await pushed.fetch.FetchDirectory(fetch, ANYONE)


async def test_what_is_not_in_the_store_cannot_be_pushed(pushed: Services) -> None:
    away = Digest.of(b"away")
    with pytest.raises(InputsMissing) as caught:
        await pushed.push.PushBlob(blob_push(away), ANYONE)
    assert caught.value.digests == (away,)
    encoded = re_pb2.Directory(files=[re_pb2.FileNode(name="file", digest=away.to_proto())]).SerializeToString()
    (root,) = await pushed.cache.add(encoded)
    push = asset_pb2.PushDirectoryRequest(instance_name="main", uris=["urn:a"], root_directory_digest=root.to_proto())
    with pytest.raises(InputsMissing) as caught:
        await pushed.push.PushDirectory(push, ANYONE)
    assert caught.value.digests == (away,)


async def test_a_blob_that_is_no_directory_cannot_be_pushed_as_one(pushed: Services) -> None:
    (digest,) = await pushed.cache.add(b"\xff\xff\xff")
    push = asset_pb2.PushDirectoryRequest(instance_name="main", uris=["urn:a"], root_directory_digest=digest.to_proto())
    with pytest.raises(MalformedRequest):
        await pushed.push.PushDirectory(push, ANYONE)


async def test_references_keep_an_asset_only_while_they_are_there(pushed: Services) -> None:
    root, file = await directory(pushed.cache)
    (log,) = await pushed.cache.add(b"log")
    await pushed.push_blob(references_blobs=[log.to_proto()], references_directories=[root.to_proto()])
    await pushed.fetch_blob("urn:a")
    del pushed.cache.memory.blobs[file]
    pushed.cache.memory._ledger.forget(file, pushed.cache.memory._ledger._entries[file])
    with pytest.raises(AssetNotFound):
        await pushed.fetch_blob("urn:a")


async def test_references_to_what_was_never_there_are_hints(pushed: Services) -> None:
    """BuildStream names build trees that it does not have, and unset digests."""
    away = Digest.of(b"away").to_proto()
    await pushed.push_blob(references_blobs=[away, re_pb2.Digest()], references_directories=[away, re_pb2.Digest()])
    await pushed.fetch_blob("urn:a")


async def test_only_who_may_update_the_action_cache_may_push(pushed: Services) -> None:
    (digest,) = await pushed.cache.add(b"content")
    reader = RequestContext(identity=Identity("reader", may_update_action_cache=False))
    with pytest.raises(NotAllowed):
        await pushed.push.PushBlob(blob_push(digest), reader)
    with pytest.raises(NotAllowed):
        await pushed.push.PushDirectory(asset_pb2.PushDirectoryRequest(), reader)
    stranger = RequestContext(identity=Identity("stranger", may_read=False))
    with pytest.raises(NotAllowed):
        await pushed.fetch.FetchBlob(blob_fetch("urn:a"), stranger)
    elsewhere = RequestContext(identity=Identity("elsewhere", instance_names=frozenset({"other"})))
    with pytest.raises(NotAllowed):
        await pushed.push.PushBlob(blob_push(digest), elsewhere)


@pytest.mark.parametrize(
    "fields",
    [
        {"uris": []},
        {"uris": [""]},
        {"uris": ["urn:a"] * (MAX_URIS + 1)},
        {"uris": ["u" * (MAX_URI_BYTES + 1)]},
        {"references_blobs": [Digest.of(b"x").to_proto()] * (MAX_REFERENCES + 1)},
        {"references_blobs": [re_pb2.Digest(hash="x")]},
        {"references_directories": [re_pb2.Digest(hash="x" * 64, size_bytes=1)]},
        {"digest_function": 99},
        {"digest_function": re_pb2.DigestFunction.SHA512},
    ],
)
async def test_malformed_pushes_are_refused(pushed: Services, fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedRequest):
        await pushed.push_blob(**fields)


async def test_a_push_without_a_digest_is_refused(pushed: Services) -> None:
    with pytest.raises(MalformedRequest, match="blob_digest"):
        await pushed.push.PushBlob(asset_pb2.PushBlobRequest(instance_name="main", uris=["urn:a"]), ANYONE)


async def test_repeated_qualifiers_are_refused(pushed: Services) -> None:
    request = blob_fetch("urn:a")
    request.qualifiers.extend([asset_pb2.Qualifier(name="x", value="1")] * 2)
    with pytest.raises(MalformedRequest, match="twice"):
        await pushed.fetch.FetchBlob(request, ANYONE)


async def test_times_beyond_all_calendars_are_only_numbers(pushed: Services) -> None:
    await pushed.push_blob(expire_at=timestamp_pb2.Timestamp(seconds=(1 << 63) - 1))
    await pushed.fetch_blob("urn:a", oldest_content_accepted=timestamp_pb2.Timestamp(seconds=-(1 << 63)))


# Fetched.

URL = "https://host.test/a"


def sri(content: bytes) -> dict[str, str]:
    return {"checksum.sri": f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"}


async def test_what_nobody_pushed_is_fetched_once_and_remembered(fetching: Services) -> None:
    fetching.outside.content[URL] = b"from outside"
    for _ in range(2):
        found = await fetching.fetch_blob(URL, qualifiers=sri(b"from outside"))
        assert found.blob_digest == Digest.of(b"from outside").to_proto()
        assert found.uri == URL
    assert len(fetching.outside.asked) == 1
    assert not await fetching.cache.store.find_missing([Digest.of(b"from outside")])


async def test_what_was_pushed_is_not_fetched(fetching: Services) -> None:
    digest = await fetching.push_blob(uris=[URL])
    assert (await fetching.fetch_blob(URL)).blob_digest == digest.to_proto()
    assert fetching.outside.asked == []


async def test_content_older_than_accepted_is_fetched_anew(fetching: Services) -> None:
    """Bazel without a checksum asks for what is younger than an hour from now."""
    fetching.outside.content[URL] = b"one"
    await fetching.fetch_blob(URL, oldest_content_accepted=at(5600))
    fetching.outside.content[URL] = b"two"
    found = await fetching.fetch_blob(URL, oldest_content_accepted=at(5600))
    assert found.blob_digest == Digest.of(b"two").to_proto()
    await fetching.fetch_blob(URL, oldest_content_accepted=at(2000))
    assert len(fetching.outside.asked) == 2


async def test_mirrors_are_tried_in_order(fetching: Services) -> None:
    fetching.outside.content["https://second.test/a"] = b"content"
    found = await fetching.fetch_blob("urn:a", URL, "https://second.test/a", "https://third.test/a")
    assert found.uri == "https://second.test/a"
    assert [url for url, _ in fetching.outside.asked] == [URL, "https://second.test/a"]


@pytest.mark.parametrize(
    "code", [Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.ABORTED, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED]
)
async def test_a_failure_at_the_origin_is_the_status_of_the_answer(fetching: Services, code: Code) -> None:
    fetching.outside.content[URL] = FetchFailed(code, "the reason")
    found = await fetching.fetch_blob(URL)
    assert (found.status.code, found.status.message, found.uri) == (code, "the reason", URL)
    assert not found.HasField("blob_digest")
    assert found.digest_function == 0


@pytest.mark.parametrize(("code", "seen"), [(Code.NOT_FOUND, NotFound), (Code.ABORTED, FailedPrecondition)])
async def test_bazel_gets_a_failure_that_it_looks_at(fetching: Services, code: Code, seen: type[Exception]) -> None:
    fetching.outside.content[URL] = FetchFailed(code, "the reason")
    bazel = RequestContext()
    bazel.request_metadata.tool_details.tool_name = "bazel"
    with pytest.raises(seen, match="the reason"):
        await fetching.fetch_blob(URL, context=bazel)


async def test_of_several_failures_the_first_is_told(fetching: Services) -> None:
    fetching.outside.content[URL] = FetchFailed(Code.PERMISSION_DENIED, "the first")
    found = await fetching.fetch_blob(URL, "https://second.test/a")
    assert (found.status.message, found.uri) == ("the first", URL)


async def test_content_with_a_wrong_checksum_is_an_aborted_fetch(fetching: Services) -> None:
    fetching.outside.content[URL] = b"something else"
    found = await fetching.fetch_blob(URL, qualifiers=sri(b"expected"))
    assert found.status.code == Code.ABORTED
    assert fetching.cache.memory.blobs == {}


async def test_headers_reach_their_urls_and_are_not_repeated(fetching: Services) -> None:
    fetching.outside.content["https://second.test/a"] = b"content"
    found = await fetching.fetch_blob(
        URL,
        "https://second.test/a",
        qualifiers={"http_header:A": "all", "http_header_url:1:B": "second", "bazel.canonical_id": "id"},
    )
    assert fetching.outside.asked == [(URL, {"a": "all"}), ("https://second.test/a", {"a": "all", "b": "second"})]
    assert [q.name for q in found.qualifiers] == ["bazel.canonical_id"]


async def test_what_one_may_see_by_his_token_is_not_given_to_another(fetching: Services) -> None:
    fetching.outside.content[URL] = b"private"
    await fetching.fetch_blob(URL, qualifiers={"http_header:Authorization": "token"})
    fetching.outside.content[URL] = FetchFailed(Code.PERMISSION_DENIED, "who are you?")
    assert (await fetching.fetch_blob(URL)).status.code == Code.PERMISSION_DENIED


async def test_qualifiers_that_nothing_understands_are_named(fetching: Services) -> None:
    with pytest.raises(QualifiersNotSupported) as caught:
        await fetching.fetch_blob(URL, qualifiers={"vcs.branch": "main", "other": "x"})
    (detail,) = caught.value.to_proto().details
    request = error_details_pb2.BadRequest()
    assert detail.Unpack(request)
    assert {violation.description for violation in request.field_violations} == {
        '"vcs.branch" not supported',
        '"other" not supported',
    }
    assert fetching.outside.asked == []


async def test_uris_that_cannot_be_fetched_are_a_miss_whatever_the_qualifiers(fetching: Services) -> None:
    for uri in ("urn:a", "file:///etc/passwd", "ftp://host.test/"):
        with pytest.raises(AssetNotFound):
            await fetching.fetch_blob(uri, qualifiers={"x": "y"})
    with pytest.raises(AssetNotFound):
        await fetching.fetch.FetchDirectory(asset_pb2.FetchDirectoryRequest(instance_name="main", uris=[URL]), ANYONE)
    assert fetching.outside.asked == []


async def test_who_waits_no_longer_than_he_said_leaves_the_fetch_to_the_next(fetching: Services) -> None:
    fetching.outside.gate.clear()
    fetching.outside.content[URL] = b"content"
    request = blob_fetch(URL)
    request.timeout.FromMilliseconds(10)
    found = await fetching.fetch.FetchBlob(request, ANYONE)
    assert (found.status.code, found.uri) == (Code.DEADLINE_EXCEEDED, URL)
    fetching.outside.gate.set()
    assert (await fetching.fetch_blob(URL)).blob_digest == Digest.of(b"content").to_proto()
    assert len(fetching.outside.asked) == 1


@pytest.mark.parametrize("seconds", [0, -1])
async def test_a_timeout_that_is_over_before_it_begins_is_refused(fetching: Services, seconds: int) -> None:
    request = blob_fetch(URL)
    request.timeout.seconds = seconds
    request.timeout.SetInParent()
    with pytest.raises(MalformedRequest, match="timeout"):
        await fetching.fetch.FetchBlob(request, ANYONE)
