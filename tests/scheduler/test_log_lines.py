"""What the log says of actions and of the end: a line for what went wrong, and none for what is the clients' own affair."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2
from structlog.testing import capture_logs

from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from tests.scheduler.world import World


@pytest.mark.parametrize(
    ("code", "exit_code", "lines"),
    [(Code.DEADLINE_EXCEEDED, 143, 1), (Code.FAILED_PRECONDITION, 0, 1), (Code.OK, 1, 0), (Code.OK, 0, 0)],
)
async def test_an_action_that_did_not_end_by_itself_is_a_line(
    world: World, code: Code, exit_code: int, lines: int
) -> None:
    worker = await world.worker()
    with capture_logs() as logs:
        stream = world.execute(await world.action())
        await stream.next()
        lease = await worker.lease()
        report = worker_pb2.Finished(
            lease_id=lease.lease_id,
            epoch=lease.epoch,
            action_result=re_pb2.ActionResult(exit_code=exit_code),
            status=status_pb2.Status(code=code, message="why" if code else ""),
        )
        worker.say(finished=report)
        await worker.hear("acknowledged")
    told = [line for line in logs if line["event"] == "action ended badly"]
    assert len(told) == lines
    for line in told:
        assert (line["code"], line["reason"], line["log_level"]) == (code.name, "why", "info")
        assert line["action"].startswith(lease.action_digest.hash)


async def test_the_end_is_one_line_however_many_wait(world: World) -> None:
    streams = [world.execute(await world.action(f"make {number}")) for number in range(3)]
    for stream in streams:
        await stream.next()
    with capture_logs() as logs:
        await world.stop()
    told = [line for line in logs if line["event"] == "clients that wait are told to come back"]
    assert [line["streams"] for line in told] == [3]
