"""Pods as machines, against a real API server: made, found again, taken away, and what keeps them from running."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from integration.kubernetes.cluster import Cluster
from integration.kubernetes.namespace import Namespace, heard, until, watching
from rexec.autoscale.kubernetes_api import open_api
from rexec.autoscale.kubernetes_owner import owner_of
from rexec.autoscale.ledger import LedgerUnusable
from rexec.autoscale.provider import Phase, Refused
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings

POOL = PoolSettings(name="cpu", image="example.com/rexec:1", properties={"pool": ["cpu"]})
SETTINGS = AutoscaleSettings(pools=(POOL,))
ALL_RIGHTS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]}


async def test_a_pod_is_made_found_again_after_a_restart_and_taken_away(cluster: Cluster, namespace: Namespace) -> None:
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        assert provider.machines() == {}
        await provider.start(POOL, "cpu-1")
        machine = provider.machines()["cpu-1"]
        assert (machine.pool, machine.phase) == ("cpu", Phase.WAITING)
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as again:
        await heard(again, lambda: not again.problem, "the first list")
        assert again.machines()["cpu-1"].created_at == machine.created_at
        await again.remove("cpu-1", 5)
        await heard(again, lambda: not again.machines(), "the end of the pod")
        await again.remove("cpu-1", 5)
    assert await namespace.pods() == []


async def test_what_is_started_twice_is_there_once(cluster: Cluster, namespace: Namespace) -> None:
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as other:
            await heard(other, lambda: not other.problem, "the first list")
            await asyncio.gather(
                provider.start(POOL, "cpu-1"), other.start(POOL, "cpu-1"), provider.start(POOL, "cpu-1")
            )
            assert set(provider.machines()) == set(other.machines()) == {"cpu-1"}
    assert len(await namespace.pods()) == 1


async def test_nothing_is_started_before_it_is_known_what_there_is(cluster: Cluster, namespace: Namespace) -> None:
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        with pytest.raises(Refused, match="not been listed yet"):
            await provider.start(POOL, "cpu-1")
    assert await namespace.pods() == []


async def test_installations_in_one_namespace_leave_each_other_alone(cluster: Cluster, namespace: Namespace) -> None:
    other_settings = AutoscaleSettings(installation="other", pools=(POOL,))
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        async with watching(other_settings, cluster.kubeconfig, namespace.name) as other:
            await heard(other, lambda: not other.problem, "the first list")
            assert other.machines() == {}
            with pytest.raises(Refused, match="that is not ours"):
                await other.start(POOL, "cpu-1")
            await other.remove("cpu-1", 0)
    assert len(await namespace.pods()) == 1


async def test_a_pod_that_somebody_deletes_is_gone(cluster: Cluster, namespace: Namespace) -> None:
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        await namespace.delete("cpu-1")
        await heard(provider, lambda: not provider.machines(), "the end of the pod")


async def test_why_a_pod_cannot_be_scheduled_is_said(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    (tmp_path / "gpu.yaml").write_text("spec: {nodeSelector: {gpu: none-has-it}}")
    pool = PoolSettings(name="gpu", image="example.com/rexec:1", pod_template="gpu.yaml")
    settings = AutoscaleSettings(pools=(pool,))
    async with watching(settings, cluster.kubeconfig, namespace.name, tmp_path) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(pool, "gpu-1")
        await heard(provider, lambda: bool(provider.machines()["gpu-1"].problem), "a problem")
        machine = provider.machines()["gpu-1"]
        assert machine.problem.startswith("the pod cannot be scheduled: ")
        assert "available" in machine.problem
        assert not machine.hopeless


EVICTED = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}
OOM = {"phase": "Failed", "containerStatuses": [
    {"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0,
     "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]}  # fmt: skip
DRAINED = {"phase": "Succeeded", "containerStatuses": [
    {"name": "worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0,
     "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "problem", "exit_code"),
    [
        (EVICTED, "Evicted: The node was low on resource: memory.", None),
        (OOM, "container worker was killed: it took more memory than its limit (OOMKilled)", 137),
        (DRAINED, "", 0),
    ],
)
async def test_how_a_pod_ended_is_said(
    status: dict[str, Any], problem: str, exit_code: int | None, cluster: Cluster, namespace: Namespace
) -> None:
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        await namespace.set_status("cpu-1", status)
        await heard(provider, lambda: provider.machines()["cpu-1"].phase is Phase.ENDED, "the end")
        machine = provider.machines()["cpu-1"]
        assert (machine.problem, machine.exit_code) == (problem, exit_code)
        await provider.remove("cpu-1", 0)
        await heard(provider, lambda: not provider.machines(), "the pod to be gone")


async def test_missing_rights_are_named_and_found_when_they_are_given(
    cluster: Cluster, namespace: Namespace, tmp_path: Path
) -> None:
    kubeconfig = await namespace.user(tmp_path)
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: "forbidden" in provider.problem, "the refusal")
        assert 'cannot list resource "pods"' in provider.problem
        assert f"in namespace {namespace.name}" in provider.problem
        await namespace.allow(kubeconfig.stem, {**ALL_RIGHTS, "verbs": ["get", "list", "watch"]})
        await heard(provider, lambda: not provider.problem, "the rights to be found")
        with pytest.raises(Refused, match='cannot create resource "pods"') as refusal:
            await provider.start(POOL, "cpu-1")
        assert refusal.value.lasting
        await namespace.allow(kubeconfig.stem, {**ALL_RIGHTS, "verbs": ["create"]})
        await until(lambda: _starts(provider, "cpu-1"), "the right to create")
        with pytest.raises(Refused, match='cannot delete resource "pods"') as refusal:
            await provider.remove("cpu-1", 0)
        assert refusal.value.lasting


async def test_a_quota_that_is_used_up_is_named(cluster: Cluster, namespace: Namespace) -> None:
    quota = {"metadata": {"name": "two-pods"}, "spec": {"hard": {"pods": "2"}}}
    await namespace.make("resourcequotas", quota)
    path = f"{namespace.path('resourcequotas')}/two-pods"

    async def is_counted() -> bool:
        return "hard" in json.loads(await namespace.api.get(path)).get("status", {})

    await until(is_counted, "the quota to be enforced")
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        await provider.start(POOL, "cpu-2")
        with pytest.raises(Refused, match="exceeded quota: two-pods") as refusal:
            await provider.start(POOL, "cpu-3")
        assert not refusal.value.lasting
        assert refusal.value.retry_after_seconds == 30
        await namespace.api.patch(path, {"spec": {"hard": {"pods": "3"}}})
        await until(lambda: _starts(provider, "cpu-3"), "the larger quota")


async def test_a_template_that_the_server_does_not_take_is_told_in_its_words(
    cluster: Cluster, namespace: Namespace, tmp_path: Path
) -> None:
    (tmp_path / "pod.yaml").write_text("spec: {volumes: [{name: Not_A_Name, emptyDir: {}}]}")
    pool = PoolSettings(name="cpu", image="example.com/rexec:1", pod_template="pod.yaml")
    async with watching(AutoscaleSettings(pools=(pool,)), cluster.kubeconfig, namespace.name, tmp_path) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        with pytest.raises(Refused, match="Not_A_Name") as refusal:
            await provider.start(pool, "cpu-1")
        assert refusal.value.lasting
        (tmp_path / "pod.yaml").write_text("spec: {tolerations: [{operator: Exists}]}")
        await provider.start(pool, "cpu-1")
    (pod,) = await namespace.pods()
    assert {"operator": "Exists"} in pod["spec"]["tolerations"]


async def test_pods_vanish_with_what_the_autoscaler_was_installed_as(
    cluster: Cluster, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {"app": "autoscaler"}
    container = {"name": "autoscaler", "image": "example.com/rexec:1"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    deployment = await namespace.make(
        "deployments", {"metadata": {"name": "autoscaler"}, "spec": spec}, "/apis/apps/v1"
    )

    async def own_pod() -> str:
        return next((pod["metadata"]["name"] for pod in await namespace.pods()), "")

    await until(own_pod, "the deployment's pod")
    async with open_api(str(cluster.kubeconfig)) as api:
        environment = {"POD_NAME": await own_pod(), "POD_NAMESPACE": namespace.name}
        owner = await owner_of(api, namespace.name, environment)
        assert owner is not None
        assert (owner.kind, owner.name, owner.uid) == ("Deployment", "autoscaler", deployment["metadata"]["uid"])
        assert await owner_of(api, "default", environment) is None
    monkeypatch.setenv("POD_NAME", environment["POD_NAME"])
    monkeypatch.setenv("POD_NAMESPACE", namespace.name)
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        path = f"{namespace.path('deployments', '/apis/apps/v1')}/autoscaler"
        await namespace.api.delete(path, {"propagationPolicy": "Background"})
        await heard(provider, lambda: not provider.machines(), "the worker's pod to be collected")


async def test_what_was_spent_outlives_the_autoscaler(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as provider:
        assert await provider.ledger.load() == ""
        await provider.ledger.save("day one")
        await provider.ledger.save("day two")
    async with watching(SETTINGS, cluster.kubeconfig, namespace.name) as again:
        assert await again.ledger.load() == "day two"
    async with watching(SETTINGS, await namespace.user(tmp_path), namespace.name) as nobody:
        with pytest.raises(LedgerUnusable, match=r"cannot be read: .* is forbidden"):
            await nobody.ledger.load()
        with pytest.raises(LedgerUnusable, match=r"cannot be written: .* is forbidden"):
            await nobody.ledger.save("day three")


async def _starts(provider: Any, name: str) -> bool:
    try:
        await provider.start(POOL, name)
    except Refused:
        return False
    return True
