"""Pods on nodes: what they run, how they end, and what keeps them from starting."""

from __future__ import annotations

from pathlib import Path

from integration.kubernetes.cluster import Cluster
from integration.kubernetes.namespace import Namespace, heard, until, watching
from integration.kubernetes.nodes import Nodes
from rexec.autoscale.provider import Phase
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings


def _pool(nodes: Nodes, folder: Path, image: str = "here", **container: object) -> AutoscaleSettings:
    containers = [{"name": "worker", "image": image, **container}]
    pool = PoolSettings(name="cpu", pod_template=nodes.template(folder, containers=containers), drain_seconds=5)
    return AutoscaleSettings(pools=(pool,))


async def test_an_image_that_is_not_there_is_hopeless(
    cluster: Cluster, namespace: Namespace, nodes: Nodes, tmp_path: Path
) -> None:
    settings = _pool(nodes, tmp_path, image="does-not-exist/worker:1")
    async with watching(settings, cluster.kubeconfig, namespace.name, tmp_path) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(settings.pools[0], "cpu-image")
        await heard(provider, lambda: bool(provider.machines()["cpu-image"].problem), "a problem")
        machine = provider.machines()["cpu-image"]
        assert (machine.phase, machine.hopeless) == (Phase.WAITING, True)
        assert machine.problem == (
            'the image cannot be pulled: failed to pull image "does-not-exist/worker:1": not found'
        )
        await provider.remove("cpu-image", 1)
        await heard(provider, lambda: not provider.machines(), "the end of the pod")


async def test_a_worker_is_told_its_name_and_address_and_has_sigterm_and_time_to_end(
    cluster: Cluster, namespace: Namespace, nodes: Nodes, tmp_path: Path
) -> None:
    script = 'trap "echo drained; exit 0" TERM; echo $REXEC_WORKER_NAME $REXEC_POD_IP; touch "$1/x"; while :; do sleep 0.1; done'
    settings = _pool(nodes, tmp_path, command=["sh", "-c", script, "sh"], args=["/work"])
    async with watching(settings, cluster.kubeconfig, namespace.name, tmp_path) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(settings.pools[0], "cpu-told")
        await heard(provider, lambda: provider.machines()["cpu-told"].phase is Phase.RUNNING, "the worker to run")

        async def is_set_up() -> bool:
            return "cpu-told 127." in nodes.output() and any(nodes.folder.glob("*/volumes/rexec-work/x"))

        await until(is_set_up, "its words")
        await provider.remove("cpu-told", 20)
        assert provider.machines()["cpu-told"].phase is Phase.LEAVING
        await heard(provider, lambda: not provider.machines(), "the end of the pod")
    (container,) = [container for container in nodes.containers() if container.pod == "cpu-told"]
    assert container.exit_code == 0
    assert "drained" in nodes.output()


async def test_a_worker_that_does_not_end_is_killed_after_its_grace(
    cluster: Cluster, namespace: Namespace, nodes: Nodes, tmp_path: Path
) -> None:
    settings = _pool(nodes, tmp_path, command=["sh", "-c", 'trap "" TERM; while :; do sleep 0.1; done'])
    async with watching(settings, cluster.kubeconfig, namespace.name, tmp_path) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(settings.pools[0], "cpu-deaf")
        await heard(provider, lambda: provider.machines()["cpu-deaf"].phase is Phase.RUNNING, "the worker to run")
        await provider.remove("cpu-deaf", 1)
        await heard(provider, lambda: not provider.machines(), "the end of the pod")
    (container,) = [container for container in nodes.containers() if container.pod == "cpu-deaf"]
    assert container.exit_code == 137


async def test_how_a_worker_ended_by_itself_is_known_until_its_pod_is_removed(
    cluster: Cluster, namespace: Namespace, nodes: Nodes, tmp_path: Path
) -> None:
    settings = _pool(nodes, tmp_path, command=["sh", "-c", "exit 3"])
    async with watching(settings, cluster.kubeconfig, namespace.name, tmp_path) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(settings.pools[0], "cpu-three")
        await heard(provider, lambda: provider.machines()["cpu-three"].phase is Phase.ENDED, "its end")
        machine = provider.machines()["cpu-three"]
        assert (machine.exit_code, machine.problem) == (3, "container worker ended with exit code 3")
        await provider.remove("cpu-three", 0)
        await heard(provider, lambda: not provider.machines(), "the end of the pod")
