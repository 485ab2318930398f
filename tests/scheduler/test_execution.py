"""Execute and WaitExecution. The numbers are those of the REAPI behaviours listed in integration/conformance."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf import wrappers_pb2
from google.rpc import status_pb2

from cas.action_cache import ActionKey
from cas.context import Identity
from cas.digest import Digest
from cas.errors import (
    ActionResultNotFound,
    Code,
    FailedPrecondition,
    InputsMissing,
    MalformedRequest,
    NotAllowed,
    NoWorkerFits,
    OperationNotFound,
    QueueFull,
    StoreFull,
    Unavailable,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.settings import SchedulerSettings
from tests.scheduler.world import World, metadata_of, stage_of, violations_of

QUEUED = re_pb2.ExecutionStage.QUEUED
EXECUTING = re_pb2.ExecutionStage.EXECUTING
COMPLETED = re_pb2.ExecutionStage.COMPLETED


def subject(digest: Digest) -> tuple[str, str]:
    return ("MISSING", f"blobs/{digest.hash}/{digest.size_bytes}")


class TestMissingInputs:
    async def test_1_a_missing_action_is_a_failed_precondition(self, world: World) -> None:
        action = await world.action(upload=False)
        with pytest.raises(InputsMissing) as caught:
            await world.execute(action).next()
        assert violations_of(caught.value.to_proto()) == [subject(action)]

    async def test_1_a_missing_command_is_a_failed_precondition(self, world: World) -> None:
        action = await world.action("never uploaded", upload_command=False, output_paths=())
        with pytest.raises(InputsMissing) as caught:
            await world.execute(action).next()
        command = Digest.of(
            re_pb2.Command(arguments=["never uploaded"], platform=re_pb2.Platform()).SerializeToString()
        )
        assert violations_of(caught.value.to_proto()) == [subject(command)]

    async def test_2_3_everything_missing_is_reported_at_once_and_nothing_else(self, world: World) -> None:
        kept = await world.root({"kept": b"kept"})
        lost = await world.root({"lost": b"lost", "deep/lost too": b"lost too"}, upload=False)
        gone = Digest.of(b"gone")
        directory = re_pb2.Directory()
        directory.files.add(name="gone", digest=gone.to_proto())
        directory.directories.add(name="kept", digest=kept.to_proto())
        directory.directories.add(name="lost", digest=lost.to_proto())
        root = await world.upload(directory.SerializeToString())
        with pytest.raises(InputsMissing) as caught:
            await world.execute(await world.action(root=root)).next()
        assert sorted(violations_of(caught.value.to_proto())) == sorted([subject(gone), subject(lost)])

    async def test_3_a_list_too_long_for_a_trailer_comes_in_the_response(self, world: World) -> None:
        directory = re_pb2.Directory()
        missing = [Digest.of(f"missing {number}".encode()) for number in range(500)]
        for number, digest in enumerate(missing):
            directory.files.add(name=f"{number:04}", digest=digest.to_proto())
        root = await world.upload(directory.SerializeToString())
        response = await world.execute(await world.action(root=root)).response()
        assert sorted(violations_of(response.status)) == sorted(map(subject, missing))

    async def test_3_uploading_what_was_named_is_enough(self, world: World) -> None:
        directory = re_pb2.Directory()
        directory.files.add(name="late", digest=Digest.of(b"late").to_proto())
        root = await world.upload(directory.SerializeToString())
        action = await world.action(root=root)
        with pytest.raises(InputsMissing):
            await world.execute(action).next()
        await world.upload(b"late")
        assert stage_of(await world.execute(action).next()) == QUEUED

    async def test_1_a_root_that_is_no_directory_is_malformed(self, world: World) -> None:
        action = await world.action(root=await world.upload(b"\xff not a directory"))
        with pytest.raises(MalformedRequest, match="is not a Directory"):
            await world.execute(action).next()

    async def test_an_action_that_is_none_is_malformed(self, world: World) -> None:
        with pytest.raises(MalformedRequest, match="is not an encoded Action"):
            await world.execute(await world.upload(b"\xff\xff\xff")).next()

    async def test_4_an_input_evicted_after_the_check_is_told_as_missing_and_costs_no_attempt(
        self, world: World
    ) -> None:
        root = await world.root({"input": b"input"})
        action = await world.action(root=root)
        worker = await world.worker()
        stream = world.execute(action)
        await stream.next()
        lease = await worker.lease()
        missing = InputsMissing([Digest.of(b"input")]).to_proto()
        await worker.finish(lease, status=missing, result=False)
        response = await stream.response()
        assert violations_of(response.status) == [subject(Digest.of(b"input"))]
        assert world.counts.retries == []

    async def test_4_after_such_a_report_nothing_is_believed_to_be_there(self, world: World) -> None:
        root = await world.root({"input": b"input"})
        worker = await world.worker()
        stream = world.execute(await world.action("first", root=root))
        await stream.next()
        lease = await worker.lease()
        world.store.evicted.add(Digest.of(b"input"))
        await worker.finish(lease, status=InputsMissing([Digest.of(b"input")]).to_proto(), result=False)
        await stream.response()
        with pytest.raises(InputsMissing):
            await world.execute(await world.action("second", root=root)).next()

    async def test_a_tree_that_describes_more_files_than_a_disk_has_is_refused(self, world: World) -> None:
        digest = await world.root({"leaf": b""})
        for _ in range(40):
            directory = re_pb2.Directory()
            directory.directories.add(name="a", digest=digest.to_proto())
            directory.directories.add(name="b", digest=digest.to_proto())
            digest = await world.upload(directory.SerializeToString())
        with pytest.raises(MalformedRequest, match="more than 1000000 files"):
            await world.execute(await world.action(root=digest)).next()


class TestStreams:
    async def test_7_the_first_operation_comes_at_once_with_name_and_metadata(self, world: World) -> None:
        action = await world.action()
        operation = await world.execute(action).next()
        assert operation.name.startswith("main/operations/")
        metadata = metadata_of(operation)
        assert metadata.stage == QUEUED
        assert Digest.from_proto(metadata.action_digest) == action
        assert metadata.digest_function == re_pb2.DigestFunction.SHA256

    async def test_an_instance_without_a_name_has_names_without_a_prefix(self, world: World) -> None:
        operation = await world.execute(await world.action(), instance_name="").next()
        assert operation.name.startswith("operations/")

    async def test_6_a_run_goes_through_the_stages_and_ends_after_completed(self, world: World) -> None:
        stream = world.execute(await world.action())
        stages = [stage_of(await stream.next())]
        worker = await world.worker()
        lease = await worker.lease()
        stages.append(stage_of(await stream.next()))
        await worker.finish(lease)
        response = await stream.response()
        assert stages == [QUEUED, EXECUTING]
        assert response.status.code == Code.OK
        assert not response.cached_result

    async def test_13_a_waiting_stream_carries_something_every_keepalive_interval(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        for _ in range(3):
            following = asyncio.create_task(stream.next())
            await world.clock.timer_set()
            world.clock.advance(world.settings.keepalive_seconds)
            assert stage_of(await following) == QUEUED

    async def test_26_a_waiting_operation_tells_the_reason(self, world: World) -> None:
        await world.worker(properties=[("gpu", "a100")])
        operation = await world.execute(await world.action(platform=[("gpu", "h100")])).next()
        (auxiliary,) = metadata_of(operation).partial_execution_metadata.auxiliary_metadata
        reason = wrappers_pb2.StringValue()
        assert auxiliary.Unpack(reason)
        assert reason.value == "no worker offers gpu=h100 (1 worker offers gpu=a100)"

    async def test_8_waiting_for_an_unknown_name_is_not_found(self, world: World) -> None:
        with pytest.raises(OperationNotFound, match="main/operations/never"):
            await world.wait("main/operations/never").next()

    async def test_8_waiting_gives_the_state_now_and_then_the_rest(self, world: World) -> None:
        stream = world.execute(await world.action())
        name = (await stream.next()).name
        again = world.wait(name)
        assert stage_of(await again.next()) == QUEUED
        worker = await world.worker()
        await worker.finish(await worker.lease())
        assert (await again.response()).status.code == Code.OK
        assert (await stream.response()).status.code == Code.OK

    async def test_8_a_completed_operation_can_be_waited_for_for_a_minute_and_more(self, world: World) -> None:
        worker = await world.worker()
        stream = world.execute(await world.action())
        await stream.next()
        await worker.finish(await worker.lease(), exit_code=7)
        await stream.response()
        world.clock.advance(61)
        assert (await world.wait(stream.name).response()).result.exit_code == 7
        world.clock.advance(world.settings.retain_seconds)
        with pytest.raises(OperationNotFound):
            await world.wait(stream.name).next()

    async def test_11_a_client_that_comes_back_in_time_gets_its_result(self, world: World) -> None:
        stream = world.execute(await world.action())
        name = (await stream.next()).name
        await stream.close()
        world.clock.advance(world.settings.abandon_seconds - 1)
        worker = await world.worker()
        again = world.wait(name)
        await again.next()
        lease = await worker.lease()
        assert stage_of(await again.next()) == EXECUTING
        world.clock.advance(10)
        await worker.finish(lease)
        assert (await again.response()).status.code == Code.OK

    async def test_11_what_nobody_waits_for_is_stopped(self) -> None:
        async with World(SchedulerSettings(heartbeat_timeout_seconds=1000)) as world:
            worker = await world.worker()
            stream = world.execute(await world.action())
            await stream.next()
            lease = await worker.lease()
            await stream.close()
            world.clock.advance(world.settings.abandon_seconds)
            revoke = (await worker.hear("revoke")).revoke
            assert (revoke.lease_id, revoke.epoch) == (lease.lease_id, lease.epoch)
            assert (await world.wait(stream.name).response()).status.code == Code.CANCELLED

    async def test_10_a_scheduler_that_stops_lets_nobody_hang(self, world: World) -> None:
        stream = world.execute(await world.action())
        await stream.next()
        following = asyncio.create_task(stream.next())
        await world.clock.timer_set()
        await world.stop()
        with pytest.raises(Unavailable):
            await following

    async def test_14_ten_thousand_operations_wait_at_once(self, world: World) -> None:
        actions = [await world.action(str(number)) for number in range(10_000)]
        streams = [world.execute(action) for action in actions]
        for stream in streams:
            await stream.next()
        assert world.broker.snapshot().platforms["any platform"].waiting == 10_000
        worker = await world.worker(slots=2)
        first, second = await worker.lease(), await worker.lease()
        assert [first.action_digest.hash, second.action_digest.hash] == [actions[0].hash, actions[1].hash]


class TestLeases:
    async def test_a_lease_carries_all_that_a_worker_needs(self, world: World) -> None:
        action = await world.action("gcc", "-c", platform=[("OSFamily", "linux")], timeout_seconds=12.5)
        worker = await world.worker()
        stream = world.execute(action)
        await stream.next()
        lease = await worker.lease()
        assert lease.instance_name == "main"
        assert Digest.from_proto(lease.action_digest) == action
        assert lease.digest_function == re_pb2.DigestFunction.SHA256
        assert list(lease.command.arguments) == ["gcc", "-c"]
        assert lease.action.platform.properties[0].name == "OSFamily"
        assert lease.timeout.ToMilliseconds() == 12_500
        assert lease.queued_timestamp.ToSeconds() == round(world.clock.wall())
        assert (lease.epoch, lease.task_id != "") == (1, True)

    async def test_17_no_timeout_means_the_servers_default(self, world: World) -> None:
        worker = await world.worker()
        await world.execute(await world.action()).next()
        assert (await worker.lease()).timeout.ToSeconds() == world.settings.default_timeout_seconds

    @pytest.mark.parametrize("seconds", [86_401, -1, 10**10])
    async def test_17_a_timeout_out_of_bounds_is_refused(self, world: World, seconds: float) -> None:
        with pytest.raises(MalformedRequest, match="timeout is"):
            await world.execute(await world.action(timeout_seconds=seconds)).next()

    async def test_26_the_actions_platform_goes_before_the_commands(self, world: World) -> None:
        linux = await world.worker("linux", properties=[("OSFamily", "linux")])
        windows = await world.worker("windows", properties=[("OSFamily", "windows")])
        both = await world.action(platform=[("OSFamily", "linux")], command_platform=[("OSFamily", "windows")])
        await world.execute(both).next()
        assert Digest.from_proto((await linux.lease()).action_digest) == both
        only = await world.action(command_platform=[("OSFamily", "windows")])
        await world.execute(only).next()
        assert Digest.from_proto((await windows.lease()).action_digest) == only

    async def test_26_an_unknown_property_is_refused_with_the_known_ones(self, world: World) -> None:
        await world.worker(properties=[("flavour", "sour")])
        with pytest.raises(NoWorkerFits, match=r"coprocessor; known are .*flavour") as caught:
            await world.execute(await world.action(platform=[("coprocessor", "8087")])).next()
        assert caught.value.code is Code.FAILED_PRECONDITION

    async def test_26_a_property_that_is_to_be_ignored_is_no_requirement(self) -> None:
        async with World(SchedulerSettings(ignored_properties=("container-image",))) as world:
            worker = await world.worker()
            await world.execute(await world.action(platform=[("container-image", "x")])).next()
            await worker.lease()

    async def test_a_full_queue_says_when_to_come_back(self) -> None:
        async with World(SchedulerSettings(max_queued_operations=1)) as world:
            await world.execute(await world.action("first")).next()
            with pytest.raises(QueueFull) as caught:
                await world.execute(await world.action("second")).next()
            assert caught.value.to_proto().details[0].type_url.endswith("google.rpc.RetryInfo")


class TestPaths:
    @pytest.mark.parametrize(
        ("working_directory", "output"),
        [
            ("", "out.o"),
            ("", ""),
            ("build/project", "../../elsewhere/out"),  # BuildStream
            ("build/project", "."),
            ("build/./project/", "a/../b"),
        ],
    )
    async def test_28_paths_inside_the_root_are_taken(self, world: World, working_directory: str, output: str) -> None:
        root = await world.root({"build/project/a.c": b"int a;"})
        action = await world.action(root=root, working_directory=working_directory, output_paths=[output])
        assert stage_of(await world.execute(action).next()) == QUEUED

    @pytest.mark.parametrize(
        ("working_directory", "output", "reason"),
        [
            ("", "../out", "leaves the input root"),
            ("", "a/../../out", "leaves the input root"),
            ("", "/etc/passwd", "is absolute"),
            ("build/project", "../../../out", "leaves the input root"),
            ("..", "out", "leaves the input root"),
            ("/build", "out", "is absolute"),
            ("nowhere", "out", "not a directory of the input root"),
            ("build/project/a.c", "out", "not a directory of the input root"),
            ("build/nowhere", "out", "not a directory of the input root"),
            ("", "nul\0", "is no path"),
            ("", "long" * 2000, "is no path"),
        ],
    )
    async def test_28_paths_that_escape_or_do_not_exist_are_refused(
        self, world: World, working_directory: str, output: str, reason: str
    ) -> None:
        root = await world.root({"build/project/a.c": b"int a;"})
        action = await world.action(root=root, working_directory=working_directory, output_paths=[output])
        with pytest.raises(MalformedRequest, match=reason):
            await world.execute(action).next()

    async def test_28_output_files_are_held_to_the_same_rule(self, world: World) -> None:
        with pytest.raises(MalformedRequest, match="leaves the input root"):
            await world.execute(await world.action(output_files=["../out"])).next()

    async def test_a_command_without_arguments_is_refused(self, world: World) -> None:
        with pytest.raises(MalformedRequest, match="no arguments"):
            await world.execute(await world.action("")).next()


class TestResults:
    async def run(self, world: World, action: Digest, **report: object) -> re_pb2.ExecuteResponse:
        """The action's response, from a worker that reports as said."""
        worker = await world.worker()
        stream = world.execute(action)
        await stream.next()
        await worker.finish(await worker.lease(), **report)  # type: ignore[arg-type]
        response = await stream.response()
        await worker.vanish()
        return response

    async def test_24_a_success_is_in_the_action_cache_when_the_client_sees_it(self, world: World) -> None:
        action = await world.action()
        response = await self.run(world, action, files={"out": b"out"})
        assert (await world.cached(action)) == response.result

    async def test_a_result_always_has_its_metadata(self, world: World) -> None:
        response = await self.run(world, await world.action())
        metadata = response.result.execution_metadata
        assert metadata.worker == "w1"
        assert metadata.queued_timestamp.ToSeconds() == round(world.clock.wall())
        assert metadata.HasField("worker_completed_timestamp")

    async def test_the_second_time_it_comes_from_the_cache(self, world: World) -> None:
        action = await world.action()
        await self.run(world, action, files={"out": b"out"})
        stream = world.execute(action)
        response = await stream.response()
        assert response.cached_result
        assert response.result.output_files[0].path == "out"
        assert response.result.HasField("execution_metadata")
        assert (await world.wait(stream.name).response()).cached_result
        assert world.counts.reads == ["miss", "hit"]

    async def test_20_skipping_the_look_up_runs_again_and_replaces_the_result(self, world: World) -> None:
        action = await world.action()
        await self.run(world, action, files={"out": b"before"})
        worker = await world.worker()
        stream = world.execute(action, skip_cache_lookup=True)
        await stream.next()
        await worker.finish(await worker.lease(), files={"out": b"after"})
        assert not (await stream.response()).cached_result
        assert Digest.from_proto((await world.cached(action)).output_files[0].digest) == Digest.of(b"after")

    async def test_21_what_must_not_be_cached_is_neither_read_nor_written(self, world: World) -> None:
        action = await world.action(do_not_cache=True)
        await world.kept.put(ActionKey("main", action), re_pb2.ActionResult(exit_code=0, stdout_raw=b"stale"))
        response = await self.run(world, action, stdout=b"fresh")
        assert not response.cached_result
        assert (await world.cached(action)).stdout_raw == b"stale"

    async def test_21_what_must_not_be_cached_runs_for_each_client(self, world: World) -> None:
        action = await world.action(do_not_cache=True)
        worker = await world.worker(slots=2)
        await world.execute(action).next()
        await world.execute(action).next()
        assert (await worker.lease()).task_id != (await worker.lease()).task_id

    @pytest.mark.parametrize("exit_code", [1, 3, 137, 143])
    async def test_22_an_exit_code_other_than_0_is_a_result_and_is_not_cached(
        self, world: World, exit_code: int
    ) -> None:
        action = await world.action()
        response = await self.run(world, action, exit_code=exit_code, message="said by the worker")
        assert response.status.code == Code.OK
        assert response.result.exit_code == exit_code
        assert response.message == "said by the worker"
        with pytest.raises(ActionResultNotFound):
            await world.cached(action)

    async def test_18_23_a_timeout_keeps_the_output_and_is_not_cached(self, world: World) -> None:
        action = await world.action()
        status = status_pb2.Status(code=Code.DEADLINE_EXCEEDED, message="ran for longer than 5 s")
        response = await self.run(world, action, status=status, files={"partial": b"x"}, stdout=b"so far")
        assert response.status.code == Code.DEADLINE_EXCEEDED
        assert response.result.output_files[0].path == "partial"
        assert response.result.stdout_digest.size_bytes == 6
        with pytest.raises(ActionResultNotFound):
            await world.cached(action)

    @pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION])
    async def test_5_a_failure_of_the_run_is_the_responses_status(self, world: World, code: Code) -> None:
        status = status_pb2.Status(code=code, message="the output is a directory")
        response = await self.run(world, await world.action(), status=status, result=False)
        assert response.status == status
        assert not response.HasField("result")

    @pytest.mark.parametrize(
        ("details", "believed"),
        [([], True), (InputsMissing([Digest.of(b"evicted")]).to_proto().details, False)],
        ids=["another failure", "an input is gone"],
    )
    async def test_4_only_a_report_of_missing_inputs_makes_known_trees_unknown(
        self, world: World, details: Sequence[Any], believed: bool
    ) -> None:
        root = await world.root({"a": b"a"})
        await world.inputs.require("main", world.store, root)
        status = status_pb2.Status(code=Code.FAILED_PRECONDITION, message="failed", details=details)
        await self.run(world, await world.action(), status=status, result=False)
        world.store.asked.clear()
        await world.inputs.require("main", world.store, root)
        assert (world.store.asked == []) is believed

    async def test_25_equal_actions_in_flight_run_once_for_all(self, world: World) -> None:
        action = await world.action()
        first, second = world.execute(action), world.execute(action)
        assert (await first.next()).name != (await second.next()).name
        worker = await world.worker(slots=2)
        await worker.finish(await worker.lease(), exit_code=9)
        assert [(await stream.response()).result.exit_code for stream in (first, second)] == [9, 9]
        assert world.counts.results == ["failed"]

    async def test_25_who_joins_must_be_allowed_to_execute(self, world: World) -> None:
        action = await world.action()
        stream = world.execute(action)
        name = (await stream.next()).name
        stranger = Identity("stranger", may_execute=False)
        with pytest.raises(NotAllowed):
            await world.execute(action, identity=stranger).next()
        with pytest.raises(NotAllowed):
            await world.wait(name, identity=stranger).next()

    async def test_9_after_a_failure_a_new_execute_is_a_new_operation(self, world: World) -> None:
        action = await world.action()
        first = world.execute(action)
        await first.next()
        await world.cancel(first.name)
        await first.response()
        second = world.execute(action)
        operation = await second.next()
        assert operation.name != first.name
        assert not operation.done

    async def test_a_result_whose_outputs_are_not_there_is_the_workers_failure(self, world: World) -> None:
        action = await world.action()
        liar, honest = await world.worker("liar"), await world.worker("honest", credit=0)
        stream = world.execute(action)
        await stream.next()
        await liar.finish(await liar.lease(), files={"out": b"never uploaded"}, upload=False)
        honest.say(credit=worker_pb2.Credit(leases=1))
        await honest.finish(await honest.lease(), files={"out": b"uploaded"})
        response = await stream.response()
        assert response.result.execution_metadata.worker == "honest"
        assert world.counts.retries == [True]

    @pytest.mark.parametrize(
        ("status", "result"),
        [(status_pb2.Status(code=99), True), (status_pb2.Status(code=-1), True), (None, False)],
    )
    async def test_a_report_that_makes_no_sense_is_the_workers_failure(
        self, world: World, status: status_pb2.Status | None, result: bool
    ) -> None:
        worker = await world.worker()
        await world.execute(await world.action()).next()
        await worker.finish(await worker.lease(), status=status, result=result)
        assert world.counts.retries == [True]

    async def test_19_an_infrastructure_failure_is_retried_and_told_only_when_attempts_are_used_up(
        self, world: World
    ) -> None:
        worker = await world.worker()
        stream = world.execute(await world.action())
        await stream.next()
        for _ in range(world.settings.max_attempts):
            oom = status_pb2.Status(code=Code.RESOURCE_EXHAUSTED, message="killed by the kernel: out of memory")
            await worker.finish(await worker.lease(), failure=worker_pb2.Finished.INFRASTRUCTURE, status=oom)
            world.clock.advance(world.settings.exclusion_seconds)
        response = await stream.response()
        assert response.status.code == Code.UNAVAILABLE
        assert response.status.message.count("w1 (killed by the kernel: out of memory)") == 3
        assert response.status.details[0].type_url.endswith("google.rpc.RetryInfo")

    async def test_24_a_cache_that_cannot_be_written_costs_nothing(self) -> None:
        class Full:
            async def get(self, key: ActionKey) -> re_pb2.ActionResult:
                raise FailedPrecondition("broken")

            async def put(self, key: ActionKey, result: re_pb2.ActionResult) -> None:
                raise StoreFull("full")

        async with World(action_cache=Full()) as world:
            response = await self.run(world, await world.action())
            assert response.status.code == Code.OK


class TestInlining:
    async def test_35_output_is_inlined_only_when_asked_for(self, world: World) -> None:
        action = await world.action(do_not_cache=True)
        worker = await world.worker(slots=2)
        asks, does_not = (
            world.execute(action, inline_stdout=True, inline_output_files=["b"]),
            world.execute(action),
        )
        for stream in (asks, does_not):
            await stream.next()
            await worker.finish(await worker.lease(), stdout=b"said", files={"a": b"A", "b": b"B"})
        with_it, without = await asks.response(), await does_not.response()
        assert with_it.result.stdout_raw == b"said"
        assert [file.contents for file in with_it.result.output_files] == [b"", b"B"]
        assert without.result.stdout_raw == b""
        assert [file.contents for file in without.result.output_files] == [b"", b""]

    async def test_35_what_is_too_large_is_left_to_its_digest(self) -> None:
        async with World(SchedulerSettings(inline_bytes=10)) as world:
            worker = await world.worker()
            stream = world.execute(await world.action(), inline_stdout=True, inline_output_files=["a"])
            await stream.next()
            await worker.finish(await worker.lease(), stdout=b"eleven byte", files={"a": b"ten bytes."})
            response = await stream.response()
            assert response.result.stdout_raw == b""
            assert response.result.stdout_digest.size_bytes == 11
            assert response.result.output_files[0].contents == b"ten bytes."
