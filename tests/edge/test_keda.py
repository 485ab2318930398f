"""The scaler as KEDA calls it: of the queue itself, and through a frontend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from cas.context import Identity, RequestContext
from cas.digest import Digest
from cas.errors import MalformedRequest, NotAllowed, ResourceExhausted, SchedulerStops
from cas.remote import RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.keda import externalscaler_pb2 as keda_pb2
from protos.methods import methods_of
from rexec.keda import FIGURES, MAX_STREAMS, WANTED, ExternalScalerService
from rexec.scheduler.autoscaling import LEAST_SECONDS
from tests.edge.test_roles import apart, ask
from tests.scheduler.world import GUARD_SECONDS, World

EVERYBODY = RequestContext()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world


def ref(**metadata: str) -> keda_pb2.ScaledObjectRef:
    said = {"scalerAddress": "rexec:8980", "pool": "linux", **metadata}
    return keda_pb2.ScaledObjectRef(name="workers", namespace="rexec", scalerMetadata=said)


async def figure(service: ExternalScalerService, name: str = WANTED, **metadata: str) -> float:
    request = keda_pb2.GetMetricsRequest(scaledObjectRef=ref(**metadata), metricName=name)
    (value,) = (await service.GetMetrics(request, EVERYBODY)).metricValues
    assert value.metricName == name
    assert value.metricValue == round(value.metricValueFloat)
    return value.metricValueFloat


async def queued(world: World, text: str) -> Any:
    stream = world.execute(await world.action(text, platform=[("Pool", "linux")]))
    await stream.next()
    return stream


async def test_the_figure_is_the_number_of_replicas(world: World) -> None:
    service = ExternalScalerService(world.broker)
    (spec,) = (await service.GetMetricSpec(ref(), EVERYBODY)).metricSpecs
    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == (WANTED, 1, 1.0)
    assert await figure(service) == 0
    for number in range(3):
        await queued(world, f"{number}")
    world.clock.advance(1)
    # Nothing is known of such actions: each takes 10 s, which is how long they may wait.
    assert {name: await figure(service, name) for name in FIGURES} == {
        WANTED: 3,
        "rexec_waiting_slot_seconds": 30,
        "rexec_waiting_tasks": 3,
        "rexec_busy_slots": 0,
    }
    assert await figure(service, f"s0-{WANTED}") == 3
    assert await figure(service, pool="other") == 0
    worker = await world.worker("w1", properties=[("Pool", "linux")])
    await worker.lease()
    world.clock.advance(1)
    assert await figure(service, "rexec_busy_slots") == 1
    assert await figure(service, "rexec_waiting_tasks") == 2
    # One of the two is left to the worker that is there: it would be done before another worker had come.
    assert await figure(service) == 2


async def test_it_is_active_while_anything_waits_or_runs(world: World) -> None:
    service = ExternalScalerService(world.broker)

    async def is_active() -> bool:
        world.clock.advance(1)
        return (await service.IsActive(ref(), EVERYBODY)).result

    assert not await is_active()
    await queued(world, "1")
    assert await is_active()
    worker = await world.worker("w1", properties=[("Pool", "linux")])
    lease = await worker.lease()
    assert await is_active()
    await worker.finish(lease)
    assert not await is_active()


async def test_changes_are_told_and_nothing_else(world: World) -> None:
    service = ExternalScalerService(world.broker)
    async with asyncio.timeout(GUARD_SECONDS), aclosing(service.StreamIsActive(ref(), EVERYBODY)) as told:
        assert not (await anext(told)).result
        changes = asyncio.ensure_future(anext(told))
        world.clock.advance(60)
        await asyncio.sleep(0)
        assert not changes.done()
        await queued(world, "1")
        world.clock.advance(LEAST_SECONDS)
        assert (await changes).result
        worker = await world.worker("w1", properties=[("Pool", "linux")])
        changes = asyncio.ensure_future(anext(told))
        await worker.finish(await worker.lease())
        world.clock.advance(LEAST_SECONDS)
        assert not (await changes).result
    assert not world.broker.autoscaling.followed


async def test_streams_leave_room_for_autoscalers_and_end_with_the_scheduler(world: World) -> None:
    service = ExternalScalerService(world.broker)
    streams = [service.StreamIsActive(ref(), EVERYBODY) for _ in range(MAX_STREAMS)]
    for stream in streams:
        await anext(stream)
    with pytest.raises(ResourceExhausted, match=str(MAX_STREAMS)):
        await anext(service.StreamIsActive(ref(), EVERYBODY))
    await streams.pop().aclose()
    again = service.StreamIsActive(ref(), EVERYBODY)
    await anext(again)
    await world.stop()
    for stream in (again, *streams):
        with pytest.raises(SchedulerStops):
            await anext(stream)
    with pytest.raises(SchedulerStops):
        await service.IsActive(ref(), EVERYBODY)


async def test_an_unknown_figure_and_nonsense_in_the_metadata_are_refused_by_name(world: World) -> None:
    service = ExternalScalerService(world.broker)
    with pytest.raises(MalformedRequest, match="metricName is 'cpu', expected rexec_wanted_workers"):
        await figure(service, "cpu")
    for call in (service.IsActive, service.GetMetricSpec):
        with pytest.raises(MalformedRequest, match="slotsPerWorker is 'many'"):
            await call(ref(slotsPerWorker="many"), EVERYBODY)


async def test_who_may_neither_execute_nor_operate_sees_nothing_and_others_their_instances(world: World) -> None:
    service = ExternalScalerService(world.broker)

    async def asked(identity: Identity, **metadata: str) -> None:
        await service.GetMetricSpec(ref(**metadata), RequestContext(identity=identity))

    with pytest.raises(NotAllowed):
        await asked(Identity(may_execute=False, may_operate=False))
    await asked(Identity(may_execute=False))
    await asked(Identity(may_operate=False))
    with pytest.raises(NotAllowed):
        await asked(Identity(instance_names=frozenset()), instance="")
    one = Identity(instance_names=frozenset({"mine"}))
    with pytest.raises(MalformedRequest, match="instance is missing"):
        await asked(one)
    with pytest.raises(NotAllowed):
        await asked(one, instance="theirs")
    await asked(one, instance="mine")


async def test_a_frontend_passes_everything_on(tmp_path: Path) -> None:
    command = re_pb2.Command(arguments=["true"]).SerializeToString()
    action = re_pb2.Action(
        command_digest=Digest.of(command).to_proto(), input_root_digest=Digest.of(b"").to_proto()
    )  # fmt: skip
    action.platform.properties.add(name="Pool", value="linux")
    encoded = action.SerializeToString()
    async with apart(tmp_path) as (_scheduler, (channel,)):
        method = methods_of(keda_pb2, "ExternalScaler")["StreamIsActive"]
        stream: Any = channel.unary_stream(
            method.path, method.request_type.SerializeToString, method.response_type.FromString
        )
        told = stream(ref())
        assert not (await told.read()).result
        await RemoteStore(channel).write_many([(Digest.of(data), data) for data in (command, encoded)])
        execute: Any = channel.unary_stream("/build.bazel.remote.execution.v2.Execution/Execute")
        request = re_pb2.ExecuteRequest(action_digest=Digest.of(encoded).to_proto())
        running = execute(request.SerializeToString())
        await running.read()
        assert (await told.read()).result
        assert (await ask(channel, keda_pb2, "ExternalScaler", "IsActive", ref())).result
        metrics = keda_pb2.GetMetricsRequest(scaledObjectRef=ref(), metricName=WANTED)
        assert (await ask(channel, keda_pb2, "ExternalScaler", "GetMetrics", metrics)).metricValues[0].metricValue == 1
        for call in (
            ask(channel, keda_pb2, "ExternalScaler", "GetMetricSpec", ref(pool="")),
            stream(ref(pool="")).read(),
        ):
            with pytest.raises(aio.AioRpcError) as refusal:
                await call
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "pool is empty" in str(refusal.value.details())
        running.cancel()
        told.cancel()
