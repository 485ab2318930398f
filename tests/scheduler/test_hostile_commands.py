"""Commands that are made to keep the scheduler busy."""

from __future__ import annotations

import pytest

from cas.errors import MalformedRequest
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.command import MAX_OUTPUTS, check_command
from tests.scheduler.world import World


def test_more_outputs_than_any_command_makes_are_refused() -> None:
    command = re_pb2.Command(arguments=["true"], output_paths=["a"] * MAX_OUTPUTS)
    assert check_command(command) == ()
    command.output_paths.append("a")
    with pytest.raises(MalformedRequest, match="100001 output paths"):
        check_command(command)


@pytest.mark.parametrize(
    "path", ["..", "../a", "a/../..", "a/../../b", "/a", "//a", "a\0", "\0", "a" * 4097, "ä" * 2049, "." * 3 + "/../.."]
)
def test_no_path_that_escapes_passes_by_the_short_way(path: str) -> None:
    with pytest.raises(MalformedRequest):
        check_command(re_pb2.Command(arguments=["true"], output_paths=[path]))


@pytest.mark.parametrize("path", ["", ".", "a", "a/./b", "a//b", "a/", "..a", "a..", "...", "a/../b", "ä" * 2000])
def test_a_path_that_stays_inside_passes(path: str) -> None:
    assert check_command(re_pb2.Command(arguments=["true"], output_paths=[path])) == ()


async def test_a_wish_to_inline_what_cannot_be_an_output_is_not_kept(world: World) -> None:
    stream = world.execute(await world.action(), inline_output_files=["out", *(f"other{n}" for n in range(1000))])
    await stream.next()
    state = await world.broker.state(stream.name)
    assert state.inlining.files == {"out"}
