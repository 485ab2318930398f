"""Builds whose blobs and results are in an object store, which goes away in between, and over shards of which one does."""

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from grpc import aio

from cas.bucket_s3 import open_bucket
from cas.compose import Verified
from cas.errors import DigestMismatch
from cas.objects import ObjectStore, key_of
from cas.objects_config import ObjectSettings
from cas.remote import RemoteStore
from integration.bazel import Bazel, execution_flags, running_bazel
from integration.execution import awaited, begin
from integration.object_server import ObjectServer, running_object_server
from integration.roles_apart import running_apart
from integration.server import REXEC, Server, running_server
from integration.waiting import wait_until
from integration.workspace import lay_out_workspace
from integration.workspaces import generate_cpp
from tests.blobs import KIB, MIB, blob, in_chunks, read

RUN_AGAIN = ("--noremote_accept_cached",)
ACTIONS_OF_MAIN = generate_cpp.TRANSLATION_UNITS + 3
REPLICAS = 2


@pytest.fixture(scope="module")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with running_object_server(tmp_path_factory.mktemp("objects")) as server:
        yield server


def configuration(server: ObjectServer, folder: Path, prefix: str) -> Path:
    """A file with a store in the bucket of that server, below `prefix`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rexec.toml"
    file.write_text(
        f"""
[store]
kind = "objects"
max_bytes = "1GiB"
[store.objects]
bucket = "s3://builds/{prefix}"
endpoint = "{server.endpoint}"
access_key_file = "{server.access_key_file}"
expires_days = 30
"""
    )
    return file


def expect_main_is_right(bazel: Bazel) -> None:
    program = bazel.bin / "app" / "main"
    printed = subprocess.run([program], check=True, capture_output=True, text=True, timeout=30).stdout
    assert printed == f"total={generate_cpp.expected_total()}\n"


def test_a_bucket_keeps_blobs_of_every_size_and_makes_them_young(object_server: ObjectServer) -> None:
    settings = ObjectSettings(
        bucket="s3://builds/sizes",
        endpoint=object_server.endpoint,
        access_key_file=str(object_server.access_key_file),
    )

    async def check() -> None:
        async with open_bucket(settings) as bucket:
            store, again = ObjectStore(bucket), ObjectStore(bucket)
            for size_bytes in (1, 128 * KIB, MIB, MIB + 1, 21 * MIB):
                digest, data = blob(size_bytes)
                assert await store.find_missing([digest]) == {digest}
                await store.put(digest, in_chunks(data))
                assert await again.find_missing([digest]) == set()
                assert await read(again, digest) == data
                assert await read(again, digest, size_bytes // 2, 1000) == data[size_bytes // 2 :][:1000]
                before = await bucket.head(key_of(digest))
                await bucket.renew(key_of(digest))
                after = await bucket.head(key_of(digest))
                assert after.size_bytes == size_bytes
                assert after.modified >= before.modified
                assert await read(ObjectStore(bucket), digest) == data
            wrong, data = blob(21 * MIB, 1)
            with pytest.raises(DigestMismatch):
                await Verified(store).put(wrong, in_chunks(b"!" + data[1:]))
            assert await again.find_missing([wrong]) == {wrong}

    asyncio.run(check())


def test_a_server_that_may_not_use_the_bucket_says_so_at_its_start(object_server: ObjectServer, tmp_path: Path) -> None:
    file = configuration(object_server, tmp_path / "server", "refused")
    wrong = tmp_path / "wrong-key"
    wrong.write_text("rexec\nanother-secret\n")
    file.write_text(file.read_text().replace(str(object_server.access_key_file), str(wrong)))
    with pytest.raises(AssertionError, match="bucket s3://builds refuses HEAD"):
        Server(tmp_path / "server", 0, ("--config", str(file)))


def test_a_server_that_has_lost_its_disk_has_every_result(object_server: ObjectServer, tmp_path: Path) -> None:
    file = configuration(object_server, tmp_path / "server", "lost")
    workspace = lay_out_workspace("cpp", tmp_path / "workspace")
    with ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path / "server", 2, ("--config", str(file))))
        bazel = stack.enter_context(running_bazel(workspace, tmp_path / "bazel", execution_flags(server.address)))
        outcome = bazel.build("//app:main").expect()
        assert outcome.processes.elsewhere == {}
        assert server.counts().executed == ACTIONS_OF_MAIN
        expect_main_is_right(bazel)
        server.stop()
        shutil.rmtree(tmp_path / "server" / "state")
        server.restart()
        bazel.clean()
        outcome = bazel.build("//app:main").expect()
        assert outcome.processes.cache_hits == ACTIONS_OF_MAIN
        assert server.counts().executed == 0
        expect_main_is_right(bazel)


def test_two_servers_share_what_is_in_the_bucket(object_server: ObjectServer, tmp_path: Path) -> None:
    workspace = lay_out_workspace("cpp", tmp_path / "workspace")
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            file = configuration(object_server, tmp_path / name, "shared")
            servers.append(stack.enter_context(running_server(tmp_path / name, 2, ("--config", str(file)))))
        bazel = stack.enter_context(running_bazel(workspace, tmp_path / "bazel"))
        first, second = (bazel.using(execution_flags(server.address)) for server in servers)
        first.build("//app:main").expect()
        bazel.clean()
        assert second.build("//app:main").expect().processes.cache_hits == ACTIONS_OF_MAIN
        assert servers[1].counts().executed == 0
        expect_main_is_right(bazel)


def test_a_build_outlives_the_death_of_the_object_store(object_server: ObjectServer, tmp_path: Path) -> None:
    file = configuration(object_server, tmp_path / "server", "killed")
    workspace = lay_out_workspace("cpp", tmp_path / "workspace")
    with ExitStack() as stack:
        server = stack.enter_context(running_server(tmp_path / "server", 2, ("--config", str(file))))
        bazel = stack.enter_context(running_bazel(workspace, tmp_path / "bazel", execution_flags(server.address)))
        build = bazel.start("build", "//app:main")
        server.wait_for_executions(10)
        build.expect_running()
        object_server.kill()
        object_server.start()
        outcome = build.wait().expect()
        assert outcome.processes.elsewhere == {}
        expect_main_is_right(bazel)
        bazel.clean()
        outcome = bazel.build("//app:main").expect()
        assert outcome.processes.cache_hits == ACTIONS_OF_MAIN


def test_frontends_and_further_processes_use_the_bucket_themselves(object_server: ObjectServer, tmp_path: Path) -> None:
    file = configuration(object_server, tmp_path, "roles")
    shared = tmp_path / "frontends.toml"
    shared.write_text(f"{file.read_text()}[server]\nshare_port = true\n")

    async def use(server: Server, seed: int) -> None:
        for size_bytes in (10, 200 * KIB, 3 * MIB):
            digest, data = blob(size_bytes, seed)
            # Each connection may reach another process.
            async with aio.insecure_channel(server.address) as channel:
                await RemoteStore(channel).put(digest, in_chunks(data))
            async with aio.insecure_channel(server.address) as channel:
                assert await RemoteStore(channel).find_missing([digest]) == set()
                assert await read(RemoteStore(channel), digest) == data

    def execute(server: Server) -> None:
        with grpc.insecure_channel(server.address) as channel:
            name, _ = begin(channel, "echo done")
            assert awaited(channel, name).result.exit_code == 0

    with running_apart(tmp_path / "apart", REXEC, ("--config", str(file)), ("--config", str(shared))) as roles:
        roles.start_worker()
        for seed in range(4):
            asyncio.run(use(roles, seed))
        execute(roles)
    with running_server(tmp_path / "many", 1, ("--config", str(file), "--processes", "2")) as server:
        for seed in range(2, 6):
            asyncio.run(use(server, seed))
        execute(server)


def test_a_build_over_three_shards_goes_on_without_one_of_them(tmp_path: Path) -> None:
    workspace = lay_out_workspace("cpp", tmp_path / "workspace")
    with ExitStack() as stack:
        shards = [stack.enter_context(running_server(tmp_path / f"shard-{number}", 0)) for number in range(3)]
        file = tmp_path / "rexec.toml"
        named = ", ".join(f'"grpc://{shard.address}"' for shard in shards)
        file.write_text(f'[store]\nkind = "sharded"\nshards = [{named}]\nreplicas = {REPLICAS}\n')
        server = stack.enter_context(running_server(tmp_path / "server", 2, ("--config", str(file))))
        bazel = stack.enter_context(running_bazel(workspace, tmp_path / "bazel", execution_flags(server.address)))
        build = bazel.start("build", "//app:main")
        server.wait_for_executions(10)
        build.expect_running()
        shards[1].kill()
        assert build.wait().expect().processes.elsewhere == {}
        expect_main_is_right(bazel)
        bazel.clean()
        assert bazel.build("//app:main").expect().processes.cache_hits == ACTIONS_OF_MAIN
        # What the shard has missed is at the others; it comes back with what it had before.
        shards[1].restart()
        wait_until(shards[1].process.is_running, "the shard", 10)
        bazel.clean()
        assert bazel.build("//app:main").expect().processes.cache_hits == ACTIONS_OF_MAIN
        expect_main_is_right(bazel)
