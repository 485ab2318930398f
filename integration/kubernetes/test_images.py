"""Actions that name a container image get workers in it, unmodified: the agent is brought along."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conformance.actions import action as upload
from integration.conformance.actions import run, status_of_execute
from integration.conformance.client import connected
from integration.conformance.options import Options
from integration.kubernetes.cluster import Cluster
from integration.kubernetes.namespace import Namespace, until
from integration.kubernetes.nodes import Nodes, running_nodes
from integration.kubernetes.pools import running_pools

_CHECKOUT = Path(__file__).parent.parent.parent
FAILED_PRECONDITION = 9


@pytest.fixture(scope="module")
def image_nodes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Nodes on which rexec's image has an agent to copy."""
    bundle = tmp_path_factory.mktemp("bundle") / "agent"
    made = subprocess.run(
        ["scripts/agent-bundle.sh", str(bundle)],
        cwd=_CHECKOUT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    arguments = ("--image-env", f"REXEC_AGENT_BUNDLE={bundle}")
    with running_nodes(cluster.kubeconfig, tmp_path_factory.mktemp("image-nodes"), arguments) as running:
        yield running


async def test_each_image_that_is_allowed_gets_a_pool_of_its_own_and_no_other_does(
    cluster: Cluster, image_nodes: Nodes, namespace: Namespace, tmp_path: Path
) -> None:
    pool = {"name": "any", "image": "example.com/rexec:1", "container_images": ["example.com/tools/*"], "max": 2}
    images: dict[str, str] = {}
    with running_pools(tmp_path, image_nodes, cluster.kubeconfig, namespace.name, [pool]) as pools:
        async with connected(Options(pools.server.address)) as client:
            await client.connect()
            for image in ("docker://example.com/tools/gcc:13", "example.com/tools/rust:1.80"):
                await run(client, "echo done", platform=[("container-image", image)])
                for pod in await namespace.pods():
                    (container,) = pod["spec"]["containers"]
                    (init,) = pod["spec"]["initContainers"]
                    assert init["image"] == "example.com/rexec:1"
                    images[pod["metadata"]["name"]] = container["image"]
            other = await upload(client, "echo no", platform=[("container-image", "docker://elsewhere.com/gcc")])
            status = await status_of_execute(client, other)
            print(status.message)
            assert status.code == FAILED_PRECONDITION
            assert "example.com/tools/*" in status.message

            async def is_empty() -> bool:
                return not await namespace.pods()

            await until(is_empty, "the pools to return to no pods")
    assert set(images.values()) == {"example.com/tools/gcc:13", "example.com/tools/rust:1.80"}
    assert len({name.rpartition("-")[0] for name in images}) == 2
    assert {container.exit_code for container in image_nodes.containers()} == {0}
