"""What a worker that lies may not pass on to clients."""

from __future__ import annotations

import pytest

from cas.digest import Digest
from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.results import MAX_RESPONSE_BYTES
from tests.scheduler.world import World

BLOB = b"blob"
DIGEST = Digest.of(BLOB).to_proto()


async def settled(world: World, result: re_pb2.ActionResult, **command: list[str]) -> re_pb2.ExecuteResponse:
    """What the client of an action hears when every worker that it is given to reports `result`."""
    await world.upload(BLOB)
    stream = world.execute(await world.action(**command))  # type: ignore[arg-type]
    await stream.next()
    for attempt in range(world.settings.max_attempts):
        worker = await world.worker(f"w{attempt}")
        lease = await worker.lease()
        worker.say(
            finished=worker_pb2.Finished(lease_id=lease.lease_id, epoch=lease.epoch, action_result=result)
        )  # fmt: skip
        await worker.hear("acknowledged")
        operation = await stream.next()
        while not operation.done and attempt == world.settings.max_attempts - 1:
            operation = await stream.next()
        if operation.done:
            response = re_pb2.ExecuteResponse()
            assert operation.response.Unpack(response)
            return response
    raise AssertionError("the operation never completed")


@pytest.mark.parametrize(
    "path", ["../../.ssh/authorized_keys", "/etc/passwd", "src/main.c", "out/../../x", "out/", "./out"]
)
@pytest.mark.parametrize("kind", ["file", "directory", "symlink", "file_symlink", "directory_symlink"])
async def test_an_output_that_the_command_does_not_declare_never_reaches_the_client(
    world: World, path: str, kind: str
) -> None:
    result = re_pb2.ActionResult()
    match kind:
        case "file":
            result.output_files.add(path=path, digest=DIGEST)
        case "directory":
            result.output_directories.add(path=path, root_directory_digest=Digest.of(b"").to_proto())
        case "symlink":
            result.output_symlinks.add(path=path, target="x")
        case "file_symlink":
            result.output_file_symlinks.add(path=path, target="x")
        case _:
            result.output_directory_symlinks.add(path=path, target="x")
    response = await settled(world, result, output_paths=["out", "odd/../out2"])
    assert response.status.code == Code.UNAVAILABLE
    assert not response.HasField("result")
    assert "does not declare" in response.status.message


async def test_outputs_are_declared_in_the_words_of_the_command(world: World) -> None:
    result = re_pb2.ActionResult()
    result.output_files.add(path="./a/../out", digest=DIGEST)
    response = await settled(world, result, output_paths=["./a/../out"])
    assert response.status.code == Code.OK
    assert response.result.output_files[0].path == "./a/../out"


@pytest.mark.parametrize("name", ["..", "../x", "/etc/x", "", "a/b", "a\0"])
async def test_a_tree_that_a_client_would_write_elsewhere_is_no_output(world: World, name: str) -> None:
    tree = re_pb2.Tree(root=re_pb2.Directory(files=[re_pb2.FileNode(name=name, digest=DIGEST)]))
    digest = await world.upload(tree.SerializeToString())
    result = re_pb2.ActionResult()
    result.output_directories.add(path="out", tree_digest=digest.to_proto())
    response = await settled(world, result)
    assert response.status.code == Code.FAILED_PRECONDITION
    assert not response.HasField("result")


@pytest.mark.parametrize(
    "result",
    [
        re_pb2.ActionResult(stdout_raw=b"x" * MAX_RESPONSE_BYTES),
        re_pb2.ActionResult(output_symlinks=[re_pb2.OutputSymlink(path="out", target="x" * MAX_RESPONSE_BYTES)]),
    ],
    ids=["stdout", "target"],
)
async def test_a_result_that_no_client_could_receive_is_a_failure_that_says_so(
    world: World, result: re_pb2.ActionResult
) -> None:
    response = await settled(world, result)
    assert response.status.code == Code.FAILED_PRECONDITION
    assert "bytes, expected at most" in response.status.message
    assert response.ByteSize() < 1000


async def test_a_disk_that_is_full_everywhere_ends_the_action_with_what_the_command_said(world: World) -> None:
    """UNAVAILABLE and RetryInfo would bring the client back for as long as the disks are full."""
    stream = world.execute(await world.action())
    await stream.next()
    for attempt in range(world.settings.max_attempts):
        worker = await world.worker(f"w{attempt}")
        lease = await worker.lease()
        report = worker_pb2.Finished(
            lease_id=lease.lease_id, epoch=lease.epoch, failure=worker_pb2.Finished.INFRASTRUCTURE, message="disk full"
        )
        report.status.code, report.status.message = Code.FAILED_PRECONDITION, "disk full"
        report.status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo")
        report.action_result.exit_code, report.action_result.stderr_raw = 1, b"no space left"
        report.action_result.output_files.add(path="out", digest=DIGEST)
        worker.say(finished=report)
        await worker.hear("acknowledged")
    operation = await stream.next()
    while not operation.done:
        operation = await stream.next()
    response = re_pb2.ExecuteResponse()
    assert operation.response.Unpack(response)
    assert (response.status.code, response.status.message) == (Code.FAILED_PRECONDITION, "disk full")
    assert not response.status.details
    assert (response.result.exit_code, response.result.stderr_raw) == (1, b"no space left")
    assert not response.result.output_files


async def test_outputs_that_never_are_in_the_store_end_the_action_for_good(world: World) -> None:
    result = re_pb2.ActionResult()
    result.output_files.add(path="out", digest=Digest.of(b"pushed out by the other outputs").to_proto())
    response = await settled(world, result, output_paths=["out"])
    assert response.status.code == Code.FAILED_PRECONDITION
    assert not response.status.details
    assert "[store] max_bytes" in response.status.message
