"""Actions, commands and workers' reports of people who mean no good, through the whole scheduler."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from google.protobuf import duration_pb2
from hypothesis import example, given
from hypothesis import strategies as st

from cas.digest import Digest
from cas.errors import Code, MalformedRequest, StatusError, Unavailable
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.settings import SchedulerSettings
from tests.fuzz.hostile import HELD, NUMBERS, TEXTS, examples, guarded, messages
from tests.scheduler.world import FakeWorker, World

NONSENSE = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
SECONDS = st.one_of(NUMBERS, st.integers(-(2**63), 2**63 - 1)).map(lambda number: max(-(2**63), min(2**63 - 1, number)))
NANOS = st.one_of(NUMBERS, st.integers(-(2**31), 2**31 - 1)).map(lambda number: max(-(2**31), min(2**31 - 1, number)))


async def leased(action: re_pb2.Action, command: re_pb2.Command) -> worker_pb2.Lease | StatusError:
    """What a worker gets to run, or why nothing is run."""
    async with World() as world:
        await world.worker("nobody", properties=[("OSFamily", "linux")], credit=0)
        worker = await world.worker("w")
        action.command_digest.CopyFrom((await world.upload(command.SerializeToString())).to_proto())
        action.input_root_digest.CopyFrom(Digest.of(b"").to_proto())
        digest = await world.upload(action.SerializeToString())
        try:
            operation = await world.execute(digest).next()
        except StatusError as failure:
            return failure
        assert not operation.done
        return await worker.lease()


def judged(action: re_pb2.Action, command: re_pb2.Command) -> worker_pb2.Lease | None:
    """The lease; None if the action was refused, which it must have been as nonsense."""
    with guarded():
        outcome = asyncio.run(leased(action, command))
    if isinstance(outcome, StatusError):
        assert outcome.code in NONSENSE
        return None
    return outcome


@given(command=messages(re_pb2.Command), action=messages(re_pb2.Action))
@examples(100)
def test_an_action_of_any_kind_is_leased_or_refused(command: re_pb2.Command, action: re_pb2.Action) -> None:
    command.platform.Clear()
    action.platform.Clear()
    lease = judged(action, command)
    if lease is not None:
        assert lease.command.arguments[0]
        assert 0 < lease.timeout.ToNanoseconds() / 1e9 <= SchedulerSettings().max_timeout_seconds


@given(seconds=SECONDS, nanos=NANOS)
@example(seconds=-1, nanos=1_000_000_000)
@example(seconds=0, nanos=-1)
@example(seconds=2**63 - 1, nanos=2**31 - 1)
@examples(60)
def test_no_timeout_is_anything_but_a_time_within_bounds(seconds: int, nanos: int) -> None:
    action = re_pb2.Action(timeout=duration_pb2.Duration(seconds=seconds, nanos=nanos))
    lease = judged(action, re_pb2.Command(arguments=["true"]))
    if lease is not None:
        assert 0 <= lease.timeout.nanos < 1_000_000_000
        assert 0 < lease.timeout.ToNanoseconds() / 1e9 <= SchedulerSettings().max_timeout_seconds


@given(name=TEXTS, value=TEXTS)
@examples(60)
def test_an_environment_that_none_can_have_is_refused(name: str, value: str) -> None:
    command = re_pb2.Command(
        arguments=["true"],
        environment_variables=[re_pb2.Command.EnvironmentVariable(name=name, value=value)],
    )
    possible = name and "=" not in name and "\0" not in name + value
    assert (judged(re_pb2.Action(), command) is not None) == bool(possible)


@given(working_directory=TEXTS, path=TEXTS)
@examples(60)
def test_no_path_leads_out_of_the_input_root(working_directory: str, path: str) -> None:
    command = re_pb2.Command(arguments=["true"], working_directory=working_directory, output_paths=[path])
    lease = judged(re_pb2.Action(), command)
    if lease is not None:
        depth = 0
        for segment in f"{working_directory}/{path}".split("/"):
            depth += {"": 0, ".": 0, "..": -1}.get(segment, 1)
        assert depth >= 0
        assert not path.startswith("/")


@pytest.mark.parametrize(
    "command",
    [
        re_pb2.Command(arguments=["true"], output_paths=[f"o{n}" for n in range(100_001)]),
        re_pb2.Command(
            arguments=["true"], output_files=[f"o{n}" for n in range(60_000)], output_directories=["d"] * 60_000
        ),
        re_pb2.Command(
            arguments=["true"],
            platform=re_pb2.Platform(
                properties=[re_pb2.Platform.Property(name=f"p{n}", value="v") for n in range(10_000)]
            ),
        ),
        re_pb2.Command(arguments=["true", "x" * (3 << 20)]),
        re_pb2.Command(
            arguments=["true"],
            platform=re_pb2.Platform(properties=[re_pb2.Platform.Property(name="p", value="v" * 5_000)]),
        ),
    ],
    ids=["output paths", "output files", "properties", "argument", "property"],
)
def test_too_much_of_anything_is_refused(command: re_pb2.Command) -> None:
    assert judged(re_pb2.Action(), command) is None


def test_a_salt_of_any_size_that_a_lease_can_carry_is_taken() -> None:
    assert judged(re_pb2.Action(salt=b"s" * (2 << 20)), re_pb2.Command(arguments=["true"])) is not None
    assert judged(re_pb2.Action(salt=b"s" * (3 << 20)), re_pb2.Command(arguments=["true"])) is None


async def reported(said: list[worker_pb2.FromWorker], own: list[bool]) -> re_pb2.ExecuteResponse | None:
    """What a client hears of an action whose worker says all this, with the right lease where `own` says so; None if it
    hears of no end. Whatever the worker did, an honest one takes over."""
    async with World(SchedulerSettings(max_attempts=2)) as world:
        await world.upload(HELD)
        stream = world.execute(await world.action())
        await stream.next()
        liar = await world.worker("liar")
        lease = await liar.lease()
        for message, is_own in zip(said, own, strict=True):
            kind = message.WhichOneof("message")
            if is_own and kind in ("progress", "finished"):
                getattr(message, kind).lease_id = lease.lease_id
                getattr(message, kind).epoch = lease.epoch
            liar._said.put_nowait(message)
        liar.end()
        await _to_the_end(liar)
        await liar.vanish()
        world.clock.advance(world.settings.grace_seconds + 1)
        operation = await stream.next()
        if not operation.done:
            honest = await world.worker("honest")
            world.clock.advance(world.settings.exclusion_seconds + 1)
            await honest.finish(await honest.lease())
            return await stream.response()
        response = re_pb2.ExecuteResponse()
        assert operation.response.Unpack(response)
        return response


async def _to_the_end(worker: FakeWorker) -> None:
    """Read what the worker is told until its stream ends, however it does."""
    with suppress(MalformedRequest, Unavailable):
        async with asyncio.timeout(10):
            async for _ in worker.stream:
                pass


@given(data=st.data())
@examples(60)
def test_a_worker_that_says_anything_at_all_harms_no_one_but_itself(data: st.DataObject) -> None:
    said = data.draw(st.lists(messages(worker_pb2.FromWorker), max_size=4))
    own = data.draw(st.lists(st.booleans(), min_size=len(said), max_size=len(said)))
    with guarded():
        response = asyncio.run(reported(said, own))
    assert response is not None
    assert response.ByteSize() < 4 << 20
    assert not any(output.path not in ("out", "partial", "a", "b") for output in response.result.output_files)
