"""Sizes as people write them, and the bounds of the stores."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from cas.action_cache import ActionKey
from cas.bucket import BucketUnusable
from cas.config import DEFAULT_MAX_BYTES, StoreSettings, default_max_bytes, parse_bytes
from cas.digest import Digest
from cas.errors import ActionResultNotFound, DigestMismatch
from cas.objects_config import ObjectSettings
from cas.stores import open_stores
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        (1, 1),
        ("1", 1),
        ("1048576", 1 << 20),
        ("20GiB", 20 << 30),
        ("20 GiB", 20 << 30),
        (" 1.5 TB ", 1_500_000_000_000),
        ("0.5KiB", 512),
        ("500M", 500 << 20),
        ("3B", 3),
        ("2PiB", 2 << 50),
    ],
)
def test_sizes_are_read_as_people_write_them(text: int | str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "lots", "-1", "1e9", "1 XB", "1gib", "0", 0, -5, "0.1B", "٣", "1.2.3", "9" * 30, "1,5G"]
)
def test_anything_else_is_refused_with_its_value(text: int | str) -> None:
    with pytest.raises(ValueError, match=r"size .* is not"):
        parse_bytes(text)


def test_a_disk_is_filled_to_half_at_most_unless_told_otherwise() -> None:
    assert default_max_bytes(free_bytes=10 << 30, held_bytes=0) == 5 << 30
    assert default_max_bytes(free_bytes=1 << 40, held_bytes=0) == DEFAULT_MAX_BYTES


def test_the_default_bound_does_not_shrink_as_the_store_fills() -> None:
    assert default_max_bytes(free_bytes=6 << 30, held_bytes=4 << 30) == 5 << 30


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_bytes": 0},
        {"max_bytes": -1},
        {"action_cache_max_bytes": 0},
        {"action_cache_max_entries": 0},
        {"sync_seconds": 0},
        {"sync_seconds": float("nan")},
        {"sync_seconds": 1e9},
        {"kind": "tape"},
        {"kind": "objects"},
        {"kind": "objects", "objects": {"bucket": "http://x"}},
        {"kind": "objects", "objects": {"bucket": "s3://bucket/../x?y"}},
        {"kind": "objects", "objects": {"bucket": "s3://bucket", "endpoint": "objects:9000"}},
        {"kind": "objects", "objects": {"bucket": "s3://bucket", "expires_days": 0.5}},
        {"kind": "objects", "objects": {"bucket": "s3://bucket", "secret": "x"}},
        {"kind": "sharded"},
        {"kind": "sharded", "shards": ["grpc://a:1", "grpc://a:1"]},
        {"kind": "sharded", "shards": ["grpc://a:1"], "replicas": 2},
        {"kind": "disk", "shards": ["grpc://a:1"]},
        {"kind": "disk", "replicas": 2},
        {"size": 3},
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(wrong, StoreSettings)


def test_a_bucket_and_the_prefix_in_it_are_one_option() -> None:
    assert ObjectSettings(bucket="s3://builds").place == ("builds", "")
    assert ObjectSettings(bucket="s3://my.builds/a/b-c/").place == ("my.builds", "a/b-c/")


@pytest.mark.parametrize("content", [None, "", "only-one", "three words here"])
async def test_an_access_key_file_that_has_no_key_is_named(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    objects = ObjectSettings(bucket="s3://builds", endpoint="http://127.0.0.1:1", access_key_file=str(file))
    with pytest.raises(BucketUnusable, match=str(file)):
        await open_stores(StoreSettings(kind="objects", objects=objects, directory=str(tmp_path))).__aenter__()


async def test_an_object_store_without_its_library_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    settings = StoreSettings(kind="objects", objects=ObjectSettings(bucket="s3://builds"), directory=str(tmp_path))
    with pytest.raises(BucketUnusable, match=r"pip install '.\[objects\]'"):
        await open_stores(settings).__aenter__()


async def test_an_object_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("id\nsecret\n")
    objects = ObjectSettings(
        bucket="s3://builds", endpoint="http://127.0.0.1:1", access_key_file=str(key), retry_seconds=0
    )
    with pytest.raises(BucketUnusable, match="s3://builds does not answer HEAD"):
        await open_stores(StoreSettings(kind="objects", objects=objects, directory=str(tmp_path))).__aenter__()


async def test_a_disk_store_needs_a_directory() -> None:
    with pytest.raises(ValueError, match="directory is empty"):
        await open_stores(StoreSettings()).__aenter__()


@pytest.mark.parametrize("kind", ["disk", "memory"])
async def test_the_stores_of_a_server_check_blobs_and_answer_complete_results_only(kind: str, tmp_path: Path) -> None:
    settings = msgspec.convert({"kind": kind, "directory": str(tmp_path)}, StoreSettings)
    digest = Digest.of(b"output")
    key = ActionKey("", Digest.of(b"action"))
    async with open_stores(settings) as stores:
        failures = await stores.blobs.write_many([(digest, b"puttuo")])
        assert isinstance(failures[digest], DigestMismatch)
        await stores.action_cache.put(key, re_pb2.ActionResult(stdout_digest=digest.to_proto()))
        with pytest.raises(ActionResultNotFound):
            await stores.action_cache.get(key)

        await stores.blobs.write_many([(digest, b"output")])

        assert (await stores.action_cache.get(key)).stdout_digest == digest.to_proto()
        assert stores.used_bytes() > 0


async def test_what_a_disk_store_holds_is_there_after_a_restart(tmp_path: Path) -> None:
    settings = StoreSettings(directory=str(tmp_path))
    digest = Digest.of(b"output")
    key = ActionKey("", Digest.of(b"action"))
    async with open_stores(settings) as stores:
        await stores.blobs.write_many([(digest, b"output")])
        await stores.action_cache.put(key, re_pb2.ActionResult(stdout_digest=digest.to_proto()))

    async with open_stores(settings) as stores:
        assert await stores.blobs.read_many([digest]) == {digest: b"output"}
        assert (await stores.action_cache.get(key)).stdout_digest == digest.to_proto()
