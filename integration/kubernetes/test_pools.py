"""Pools that follow the work: real actions on pods that are there because of them, and gone when they are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from integration.conformance.actions import run
from integration.conformance.client import connected
from integration.conformance.options import Options
from integration.installation import Death, Role
from integration.kubernetes.cluster import Cluster
from integration.kubernetes.faults import CLOSED, FaultProxy
from integration.kubernetes.namespace import Namespace, until
from integration.kubernetes.nodes import Nodes
from integration.kubernetes.pools import Build, Pools, building, most_workers, posted_pods, running_pools
from integration.waiting import wait_until
from rexec.autoscale.kubernetes_api import ApiRefusal

DECISION_SECONDS = 1.0
"""From Execute until a pod is asked for."""
BUILD_SECONDS = 240.0
OUTAGE_SECONDS = 120.0

Proxied = tuple[FaultProxy, Path]


@pytest.fixture
def pools(tmp_path: Path, nodes: Nodes, proxied: Proxied, namespace: Namespace) -> Iterator[Pools]:
    """One pool of up to six workers, whose autoscaler reaches the API server through the proxy."""
    with running_pools(tmp_path, nodes, proxied[1], namespace.name) as running:
        yield running


@pytest.fixture
def build(tmp_path: Path, pools: Pools) -> Iterator[Build]:
    with building(tmp_path, pools.server) as made:
        yield made


@contextmanager
def away(cluster: Cluster, proxy: FaultProxy) -> Iterator[None]:
    """The API server is killed meanwhile if it is ours, and else cannot be reached by the autoscaler."""
    if cluster.scripts is not None:
        cluster.kill_api_server()
    else:
        proxy.judge = lambda method, target: CLOSED
        proxy.cut()
    try:
        yield
    finally:
        if cluster.scripts is not None:
            cluster.start_api_server()
        else:
            proxy.judge = lambda method, target: None


async def returns_to_nothing(namespace: Namespace) -> None:
    async def is_empty() -> bool:
        return not await namespace.pods()

    await until(is_empty, "the pool to return to no pods")


async def test_a_pod_is_asked_for_as_soon_as_an_action_waits_for_one(
    pools: Pools, proxied: Proxied, namespace: Namespace
) -> None:
    proxy, _ = proxied
    async with connected(Options(pools.server.address)) as client:
        await client.connect()
        for _ in range(3):
            before, began = len(posted_pods(proxy)), time.time()
            await run(client, "echo done")
            asked = posted_pods(proxy)[before] - began
            print(f"a pod was asked for after {asked:.3f} s, and the action was done after {time.time() - began:.1f} s")
            assert asked < DECISION_SECONDS
            await returns_to_nothing(namespace)
    assert {container.exit_code for container in pools.containers()} == {0}


async def test_a_build_gets_workers_from_none_and_leaves_none(pools: Pools, build: Build, namespace: Namespace) -> None:
    assert await namespace.pods() == []
    began = time.time()
    command = build.bazel.start("build", "//...")
    outcome = await asyncio.to_thread(command.wait, BUILD_SECONDS)
    built = time.time()
    build.expect_right(outcome)
    await returns_to_nothing(namespace)
    most = most_workers(pools.containers())
    print(
        f"{len(build.runs())} actions in {built - began:.0f} s on up to {most} workers, gone {time.time() - built:.0f} s later"
    )
    assert most >= 4
    assert {container.exit_code for container in pools.containers()} == {0}


async def test_pods_may_be_deleted_at_random(pools: Pools, build: Build, namespace: Namespace) -> None:
    """By turns as a node's drain does it, after which nothing is run again, and at once, after which only what ran there is."""
    random = Random(1)
    deaths: list[Death] = []
    drained = 0
    command = build.bazel.start("build", "//...")
    await asyncio.to_thread(build.wait_for_runs, 20)
    building_ = asyncio.create_task(asyncio.to_thread(command.wait, BUILD_SECONDS))
    while not (await asyncio.wait({building_}, timeout=3.0))[0]:
        running = {container.pod: container for container in pools.containers() if container.ended_at is None}
        victims = [pod for pod in await namespace.pods() if pod["metadata"]["name"] in running]
        victims = [pod for pod in victims if "deletionTimestamp" not in pod["metadata"]]
        if not victims:
            continue
        name = random.choice(victims)["metadata"]["name"]
        at_once = (len(deaths) + drained) % 2 == 1
        with suppress(ApiRefusal):
            at = time.time()
            if at_once:
                deaths.append(Death(name, Role.WORKER, running[name].pid, at, at))
                await namespace.delete(name)
            else:
                drained += 1
                await namespace.delete(name, grace_seconds=60)
    build.expect_right(building_.result(), deaths)
    again = len(build.runs()) - len({one.action for one in build.runs()})
    print(f"{len(deaths)} pods killed and {drained} drained: {again} actions were run again")
    assert deaths
    assert drained
    await returns_to_nothing(namespace)


async def test_a_worker_that_is_evicted_ends_what_it_runs(pools: Pools, namespace: Namespace, tmp_path: Path) -> None:
    """An eviction, such as `kubectl drain` asks for, gives the pod the grace that stands in it."""
    log, go_on = tmp_path / "runs", tmp_path / "go-on"
    script = f"echo $PPID >> {log}; while [ ! -e {go_on} ]; do sleep 0.1; done"
    async with connected(Options(pools.server.address)) as client:
        await client.connect()
        running = asyncio.create_task(run(client, script))
        await asyncio.to_thread(wait_until, log.exists, "the action to begin", 60)
        (pod,) = await namespace.pods()
        await namespace.evict(pod["metadata"]["name"])

        async def is_leaving() -> bool:
            return all("deletionTimestamp" in pod["metadata"] for pod in await namespace.pods())

        await until(is_leaving, "the eviction")
        await asyncio.to_thread(wait_until, lambda: "draining" in pools.workers(), "the worker to drain", 30)
        go_on.touch()
        await running
    assert len(log.read_text().splitlines()) == 1
    await returns_to_nothing(namespace)
    assert {container.exit_code for container in pools.containers()} == {0}


async def test_an_autoscaler_that_is_killed_is_followed_by_one_that_finds_the_pods(
    pools: Pools, build: Build, namespace: Namespace
) -> None:
    command = build.bazel.start("build", "//...")
    await asyncio.to_thread(build.wait_for_runs, 40)
    before = {pod["metadata"]["name"] for pod in await namespace.pods()}
    pools.restart_autoscaler()
    outcome = await asyncio.to_thread(command.wait, BUILD_SECONDS)
    build.expect_right(outcome)
    await returns_to_nothing(namespace)
    assert before
    assert len({container.pod for container in pools.containers()}) <= len(before) + 6
    assert {container.exit_code for container in pools.containers()} == {0}


async def test_an_api_server_that_is_away_for_two_minutes_stops_no_build_and_is_named(
    cluster: Cluster, nodes: Nodes, proxied: Proxied, namespace: Namespace, tmp_path: Path
) -> None:
    proxy, kubeconfig = proxied
    kinds: list[dict[str, object]] = [
        {"properties": {"pool": ["cpu"]}},
        {"name": "other", "properties": {"pool": ["other"]}},
    ]
    with (
        running_pools(tmp_path, nodes, kubeconfig, namespace.name, kinds) as pools,
        building(tmp_path, pools.server, "--remote_default_exec_properties=pool=cpu") as build,
    ):
        command = build.bazel.start("build", "//...")
        await asyncio.to_thread(build.wait_for_runs, 40)
        workers = {container.pod for container in pools.containers()}
        gone_at = time.monotonic()
        with away(cluster, proxy):
            command.expect_running()
            late = asyncio.create_task(_one_action(pools.server.address))
            await asyncio.to_thread(wait_until, lambda: "API server" in pools.ps(), "the reason in rexec ps", 30)
            print(next(line for line in pools.ps().splitlines() if "API server" in line))
            outcome = await asyncio.to_thread(command.wait, BUILD_SECONDS)
            build.expect_right(outcome)
            print(f"built {time.monotonic() - gone_at:.0f} s into the outage")
            await asyncio.sleep(max(0.0, OUTAGE_SECONDS - (time.monotonic() - gone_at)))
            assert {container.pod for container in pools.containers()} == workers
            assert not late.done()
        back_at = time.monotonic()
        await late
        print(f"what waited was done {time.monotonic() - back_at:.1f} s after the API server was back")
        await returns_to_nothing(namespace)
        assert {container.exit_code for container in pools.containers()} == {0}


async def _one_action(address: str) -> None:
    """An action that only a worker of the pool "other" can run."""
    async with connected(Options(address)) as client:
        await client.connect()
        await run(client, "echo late", platform=[("pool", "other")], request={"timeout": 300.0})
