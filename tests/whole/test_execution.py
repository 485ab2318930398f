"""An action's whole way: client, server, worker and back, over real connections in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from cas.digest import Digest
from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from tests.whole.client import Client, whole_server


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    async with whole_server(tmp_path) as client:
        yield client


async def test_an_action_sees_its_inputs_and_its_outputs_come_back(client: Client) -> None:
    action = await client.action("cat a b > c; echo done; echo oops >&2", ["c"], {"a": b"1", "b": b"2"})
    response = await client.execute(action)
    assert response.status.code == Code.OK
    assert response.result.exit_code == 0
    assert await client.output(response, "c") == b"12"
    stdout, stderr = Digest.of(b"done\n"), Digest.of(b"oops\n")
    assert Digest.from_proto(response.result.stdout_digest) == stdout
    assert (await client.store.read_many([stdout, stderr])) == {stdout: b"done\n", stderr: b"oops\n"}


async def test_the_second_time_the_action_cache_answers(client: Client) -> None:
    action = await client.action("date +%N > out", ["out"])
    first, second = await client.execute(action), await client.execute(action)
    assert not first.cached_result
    assert second.cached_result
    assert await client.output(first, "out") == await client.output(second, "out")


async def test_skipping_the_lookup_runs_again_and_renews_the_result(client: Client) -> None:
    """Behaviour 20."""
    action = await client.action("date +%N > out", ["out"])
    first = await client.execute(action)
    again = await client.execute(action, skip_cache_lookup=True)
    third = await client.execute(action)
    assert await client.output(first, "out") != await client.output(again, "out")
    assert third.cached_result
    assert await client.output(third, "out") == await client.output(again, "out")


async def test_what_must_not_be_cached_is_not(client: Client) -> None:
    """Behaviours 21 and 22."""
    unwanted = await client.action("date +%N > out", ["out"], do_not_cache=True)
    failing = await client.action("exit 3", salt=b"x")
    for action in (unwanted, failing):
        for _ in range(2):
            assert not (await client.execute(action)).cached_result
    assert (await client.execute(failing)).result.exit_code == 3


async def test_equal_actions_at_the_same_time_run_once(client: Client) -> None:
    """Behaviour 25."""
    action = await client.action("sleep 0.3; date +%N > out", ["out"])
    responses = await asyncio.gather(*(client.execute(action) for _ in range(5)))
    outputs = {await client.output(response, "out") for response in responses}
    assert len(outputs) == 1
    assert not any(response.cached_result for response in responses)


async def test_a_timed_out_action_keeps_what_it_had_written(client: Client) -> None:
    """Behaviour 18."""
    action = await client.action("echo early; echo half > out; exec sleep 600", ["out"], timeout={"nanos": 200_000_000})
    response = await client.execute(action)
    assert response.status.code == Code.DEADLINE_EXCEEDED
    assert await client.output(response, "out") == b"half\n"
    assert Digest.from_proto(response.result.stdout_digest) == Digest.of(b"early\n")


async def test_all_missing_inputs_are_named_at_once(client: Client) -> None:
    """Behaviours 1 to 3."""
    absent = [Digest.of(b"absent %d" % number) for number in range(3)]
    root = re_pb2.Directory(
        files=[re_pb2.FileNode(name=f"f{number}", digest=digest.to_proto()) for number, digest in enumerate(absent)]
    )
    command = re_pb2.Command(arguments=["true"])
    root_digest, command_digest = await client.upload(root, command)
    (action,) = await client.upload(
        re_pb2.Action(command_digest=command_digest.to_proto(), input_root_digest=root_digest.to_proto())
    )
    with pytest.raises(aio.AioRpcError) as caught:
        await client.execute(action)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    failure = error_details_pb2.PreconditionFailure()
    assert status.details[0].Unpack(failure)
    assert {violation.type for violation in failure.violations} == {"MISSING"}
    assert {violation.subject for violation in failure.violations} == {digest.blob_name() for digest in absent}


async def test_more_missing_inputs_than_a_trailer_holds_are_named_too(client: Client) -> None:
    absent = [Digest.of(b"absent %d" % number) for number in range(500)]
    root = re_pb2.Directory(
        files=[re_pb2.FileNode(name=f"f{number:03}", digest=digest.to_proto()) for number, digest in enumerate(absent)]
    )
    root_digest, command_digest = await client.upload(root, re_pb2.Command(arguments=["true"]))
    (action,) = await client.upload(
        re_pb2.Action(command_digest=command_digest.to_proto(), input_root_digest=root_digest.to_proto())
    )
    response = await client.execute(action)
    assert response.status.code == Code.FAILED_PRECONDITION
    failure = error_details_pb2.PreconditionFailure()
    assert response.status.details[0].Unpack(failure)
    assert len(failure.violations) == 500


async def test_the_stages_come_in_order_and_the_last_operation_is_done(client: Client) -> None:
    """Behaviours 5 to 7."""
    action = await client.action("sleep 0.2")
    operations = await client.operations(action)
    stages = []
    for operation in operations:
        metadata = re_pb2.ExecuteOperationMetadata()
        assert operation.metadata.Unpack(metadata)
        assert Digest.from_proto(metadata.action_digest) == action
        assert metadata.digest_function == re_pb2.DigestFunction.SHA256
        assert not operation.HasField("error")
        stages.append(metadata.stage)
    assert stages == sorted(stages)
    assert [operation.done for operation in operations] == [False] * (len(operations) - 1) + [True]
    assert len({operation.name for operation in operations}) == 1


async def test_large_inputs_and_outputs_take_the_streaming_road(client: Client) -> None:
    data = bytes(range(256)) * (5 << 12)  # 5 MiB
    digest = Digest.of(data)

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    await client.store.put(digest, pieces())
    root = re_pb2.Directory(files=[re_pb2.FileNode(name="big", digest=digest.to_proto())])
    command = re_pb2.Command(arguments=["/bin/sh", "-c", "cat big big > twice"], output_paths=["twice"])
    root_digest, command_digest = await client.upload(root, command)
    (action,) = await client.upload(
        re_pb2.Action(command_digest=command_digest.to_proto(), input_root_digest=root_digest.to_proto())
    )
    response = await client.execute(action)
    assert response.result.exit_code == 0
    assert await client.output(response, "twice") == data + data
