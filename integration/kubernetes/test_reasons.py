"""What keeps pods from coming is said to those who wait for them, in `rexec ps`."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from integration.conformance.actions import run
from integration.conformance.client import connected
from integration.conformance.options import Options
from integration.kubernetes.cluster import Cluster
from integration.kubernetes.namespace import Namespace, until
from integration.kubernetes.nodes import Nodes
from integration.kubernetes.pools import Pools, running_pools
from integration.waiting import wait_until

REASON_SECONDS = 60.0
DONE_SECONDS = 240.0


async def _action(pools: Pools, pool: str) -> None:
    """An action that only workers of the pool can run."""
    async with connected(Options(pools.server.address)) as client:
        await client.connect()
        await run(client, "echo done", platform=[("pool", pool)], request={"timeout": DONE_SECONDS})


async def _is_said(pools: Pools, words: str) -> None:
    await asyncio.to_thread(wait_until, lambda: words in pools.ps(), f"{words!r} in rexec ps", REASON_SECONDS)


def _of(name: str, **options: object) -> dict[str, object]:
    return {"name": name, "properties": {"pool": [name]}, "max": 1, **options}


async def test_an_image_that_is_not_there_and_a_pod_too_large_for_any_node_are_named(
    cluster: Cluster, nodes: Nodes, namespace: Namespace, tmp_path: Path
) -> None:
    kinds = [_of("image", image="does-not-exist/rexec:1"), _of("large", cpu=1000.0), _of("good")]
    with running_pools(tmp_path, nodes, cluster.kubeconfig, namespace.name, kinds) as pools:
        waiting = [asyncio.create_task(_action(pools, name)) for name in ("image", "large")]
        try:
            await _is_said(pools, 'failed to pull image "does-not-exist/rexec:1": not found')
            await _is_said(pools, "Insufficient cpu")
            # They stand in nobody's way.
            await _action(pools, "good")
            print(pools.ps())
            assert not any(task.done() for task in waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
    created = [container.pod for container in pools.containers()]
    assert all(name.startswith("good-") for name in created)


async def test_a_used_up_quota_and_a_missing_right_are_named_until_they_are_put_right(
    cluster: Cluster, nodes: Nodes, namespace: Namespace, tmp_path: Path
) -> None:
    quota = {"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}}
    await namespace.make("resourcequotas", quota)
    path = f"{namespace.path('resourcequotas')}/no-pods"

    async def is_counted() -> bool:
        return "hard" in json.loads(await namespace.api.get(path)).get("status", {})

    await until(is_counted, "the quota to be enforced")
    rights = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "delete"]}
    kubeconfig = await namespace.user(tmp_path, rights)
    with running_pools(tmp_path, nodes, kubeconfig, namespace.name, [_of("cpu")]) as pools:
        waiting = asyncio.create_task(_action(pools, "cpu"))
        await _is_said(pools, 'cannot create resource "pods"')
        await namespace.allow(kubeconfig.stem, {**rights, "verbs": ["create"]})
        await _is_said(pools, "exceeded quota: no-pods")
        print(pools.ps())
        await namespace.api.patch(path, {"spec": {"hard": {"pods": "1"}}})
        await waiting
