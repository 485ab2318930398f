"""The manifests of deploy/kubernetes: taken by an API server, enough for what runs with them, and no more than that."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from integration.kubernetes.cluster import Cluster
from integration.kubernetes.manifests import applied, within
from integration.kubernetes.namespace import Namespace, heard, until, watching
from rexec.autoscale.kubernetes_api import open_api
from rexec.autoscale.kubernetes_ledger import KubernetesLedger
from rexec.autoscale.kubernetes_owner import owner_of
from rexec.autoscale.kubernetes_pod import Origin, pod_manifest
from rexec.autoscale.kubernetes_provider import open_provider
from rexec.autoscale.ledger import LedgerUnusable
from rexec.autoscale.provider import Refused
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings
from tests.kustomized import KUBERNETES, Manifest, kubectl, rendered

BASE, SMALL, LARGE = KUBERNETES / "base", KUBERNETES / "overlays" / "small", KUBERNETES / "overlays" / "large"
POOL = PoolSettings(name="cpu", image="example.com/rexec-worker:1")
SETTINGS = AutoscaleSettings(pools=(POOL,))
MONITOR: Manifest = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "servicemonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {"kind": "ServiceMonitor", "plural": "servicemonitors"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                },
            }
        ],
    },
}
"""Stands for the Prometheus operator, where it is not installed."""


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> list[str]:
    """The API versions of the server."""
    return kubectl("api-versions", kubeconfig=cluster.kubeconfig).split()


@pytest.mark.parametrize("directory", [BASE, SMALL, LARGE], ids=lambda directory: directory.name)
def test_an_api_server_takes_every_object(
    directory: Path, cluster: Cluster, namespace: Namespace, served: list[str]
) -> None:
    manifests = rendered(directory)
    said = applied(within(manifests, namespace.name, served), cluster.kubeconfig, "--dry-run=server")
    assert said.count("serverside-applied (server dry run)") == len(manifests) - 1
    (itself,) = [manifest for manifest in manifests if manifest["kind"] == "Namespace"]
    assert "serverside-applied" in applied([itself], cluster.kubeconfig, "--dry-run=server")


def test_an_api_server_with_the_operator_takes_the_monitor(
    cluster: Cluster, namespace: Namespace, served: list[str], tmp_path: Path
) -> None:
    if "monitoring.coreos.com/v1" not in served:
        applied([MONITOR], cluster.kubeconfig)
        kubectl(
            "wait", "--for=condition=established", "crd", MONITOR["metadata"]["name"], kubeconfig=cluster.kubeconfig
        )
    # kustomize takes no absolute paths.
    above = "/".join([".."] * len(tmp_path.resolve().parts[1:]))
    kustomization = {"components": [f"{above}{KUBERNETES / 'monitoring'}"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    manifests = rendered(tmp_path)
    assert {manifest["kind"] for manifest in manifests} == {"Service", "ServiceMonitor", "NetworkPolicy"}
    said = applied(within(manifests, namespace.name, served), cluster.kubeconfig, "--dry-run=server")
    assert said.count("serverside-applied") == len(manifests)


def _rules(directory: Path) -> list[dict[str, Any]]:
    (role,) = [manifest for manifest in rendered(directory) if manifest["kind"] == "Role"]
    return list(role["rules"])


def _without(rules: list[dict[str, Any]], resource: str, verb: str) -> list[dict[str, Any]]:
    left = copy.deepcopy(rules)
    for rule in left:
        if resource in rule["resources"]:
            rule["verbs"] = [other for other in rule["verbs"] if other != verb]
    return [rule for rule in left if rule["verbs"]]


async def _installed(namespace: Namespace, kind: str, name: str) -> str:
    """Something that the autoscaler could be installed as, with a pod that waits; the name of the pod."""
    labels = {"app": name}
    spec: dict[str, Any] = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "rexec", "image": "rexec"}]}},
    }
    if kind == "StatefulSet":
        spec["serviceName"] = name
    body = {"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}
    await namespace.make(f"{kind.lower()}s", body, "/apis/apps/v1")

    async def pods() -> list[dict[str, Any]]:
        return [pod for pod in await namespace.pods() if pod["metadata"].get("labels", {}).get("app") == name]

    await until(pods, f"the pod of {kind} {name}")
    return str((await pods())[0]["metadata"]["name"])


async def _owner(kubeconfig: Path, namespace: str, pod: str) -> str:
    async with open_api(str(kubeconfig), namespace) as api:
        owner = await owner_of(api, namespace, {"POD_NAME": pod, "POD_NAMESPACE": namespace})
    return f"{owner.kind} {owner.name}" if owner is not None else ""


async def _all_is_well(user: Path, namespace: Namespace) -> None:
    """Every request of the provider, as this user."""
    async with watching(SETTINGS, user, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        await provider.remove("cpu-1", 1)
        await heard(provider, lambda: not provider.machines(), "the end of the pod")


async def test_the_role_of_the_autoscaler_is_enough(namespace: Namespace, tmp_path: Path) -> None:
    user = await namespace.user(tmp_path, *_rules(BASE))
    await _all_is_well(user, namespace)
    pod = await _installed(namespace, "Deployment", "rexec-autoscaler")
    assert await _owner(user, namespace.name, pod) == "Deployment rexec-autoscaler"
    async with open_api(str(user), namespace.name) as api:
        ledger = KubernetesLedger(api, namespace.name, Origin(installation="rexec", server=""))
        assert await ledger.load() == ""
        await ledger.save("first")
        await ledger.save("second")
        assert await ledger.load() == "second"


async def test_the_role_of_the_small_installation_is_enough(namespace: Namespace, tmp_path: Path) -> None:
    user = await namespace.user(tmp_path, *_rules(SMALL))
    await _all_is_well(user, namespace)
    pod = await _installed(namespace, "Deployment", "rexec")
    assert await _owner(user, namespace.name, pod) == "Deployment rexec"


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_pods_of_workers_stay_those_of_the_installation(kind: str, namespace: Namespace) -> None:
    pod = await _installed(namespace, kind, "rexec")
    async with open_api(str(namespace.kubeconfig), namespace.name) as api:
        owner = await owner_of(api, namespace.name, {"POD_NAME": pod, "POD_NAMESPACE": namespace.name})
    assert owner is not None
    manifest = pod_manifest(POOL, "cpu-1", "", Origin(installation="rexec", server="grpc://rexec:8980", owner=owner))
    await namespace.make("pods", manifest)
    # Once the controller has made what was deleted, it has looked at all pods.
    await namespace.delete(pod)

    async def is_replaced() -> bool:
        there = [other["metadata"] for other in await namespace.pods()]
        return len(there) == 2 and all("deletionTimestamp" not in other for other in there)

    await until(is_replaced, "another pod of the installation")
    (worker,) = [other for other in await namespace.pods() if other["metadata"]["name"] == "cpu-1"]
    assert [reference["name"] for reference in worker["metadata"].get("ownerReferences", ())] == ["rexec"]


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_without_that_verb_nothing_is_heard_of_pods(verb: str, namespace: Namespace, tmp_path: Path) -> None:
    user = await namespace.user(tmp_path, *_without(_rules(BASE), "pods", verb))
    async with watching(SETTINGS, user, namespace.name) as provider:
        await heard(provider, lambda: f'cannot {verb} resource "pods"' in provider.problem, "the refusal")


@pytest.mark.parametrize(("directory", "may_read"), [(BASE, True), (SMALL, True), (BASE, False)])
async def test_a_pod_that_is_there_already_has_to_be_read(
    directory: Path, may_read: bool, namespace: Namespace, tmp_path: Path
) -> None:
    rules = _rules(directory) if may_read else _without(_rules(directory), "pods", "get")
    user = await namespace.user(tmp_path, *rules)
    settings = AutoscaleSettings(
        pools=(POOL,), server="grpc://rexec:8980", kubeconfig=str(user), namespace=namespace.name
    )
    async with open_provider(settings, Path()) as provider:
        running = asyncio.create_task(provider.run())
        await heard(provider, lambda: not provider.problem, "the first list")
        # It is not to hear of the pod.
        running.cancel()
        await asyncio.wait({running})
        await namespace.make("pods", pod_manifest(POOL, "cpu-1", "", Origin(installation="rexec", server="grpc://r:1")))
        if may_read:
            await provider.start(POOL, "cpu-1")
            assert set(provider.machines()) == {"cpu-1"}
        else:
            with pytest.raises(Refused, match='cannot get resource "pods"'):
                await provider.start(POOL, "cpu-1")


@pytest.mark.parametrize("verb", ["create", "delete", "get"])
async def test_without_that_verb_pods_are_refused(verb: str, namespace: Namespace, tmp_path: Path) -> None:
    user = await namespace.user(tmp_path, *_without(_rules(BASE), "pods", verb))
    async with watching(SETTINGS, namespace.kubeconfig, namespace.name) as administrator:
        await heard(administrator, lambda: not administrator.problem, "the first list")
        async with watching(SETTINGS, user, namespace.name) as provider:
            await heard(provider, lambda: not provider.problem, "the first list")
            refusal = f'cannot {verb} resource "pods"'
            if verb == "create":
                with pytest.raises(Refused, match=refusal):
                    await provider.start(POOL, "cpu-1")
            elif verb == "delete":
                await provider.start(POOL, "cpu-1")
                with pytest.raises(Refused, match=refusal):
                    await provider.remove("cpu-1", 1)
    if verb == "get":
        pod = await _installed(namespace, "Deployment", "rexec-autoscaler")
        assert await _owner(user, namespace.name, pod) == ""


@pytest.mark.parametrize("resource", ["replicasets", "deployments"])
async def test_without_reading_it_the_installation_is_not_known(
    resource: str, namespace: Namespace, tmp_path: Path
) -> None:
    user = await namespace.user(tmp_path, *_without(_rules(BASE), resource, "get"))
    pod = await _installed(namespace, "Deployment", "rexec-autoscaler")
    assert await _owner(user, namespace.name, pod) == ""


@pytest.mark.parametrize("verb", ["create", "get", "patch"])
async def test_without_that_verb_what_was_spent_is_not_kept(verb: str, namespace: Namespace, tmp_path: Path) -> None:
    user = await namespace.user(tmp_path, *_without(_rules(BASE), "configmaps", verb))
    if verb != "create":
        await namespace.make("configmaps", {"metadata": {"name": "rexec-autoscaler"}})
    async with open_api(str(user), namespace.name) as api:
        ledger = KubernetesLedger(api, namespace.name, Origin(installation="rexec", server=""))
        with pytest.raises(LedgerUnusable, match=f'cannot {verb} resource "configmaps"'):
            await (ledger.load() if verb == "get" else ledger.save("text"))


def test_workers_may_ask_the_api_server_for_nothing(cluster: Cluster, namespace: Namespace, served: list[str]) -> None:
    accounts = [
        manifest
        for manifest in within(rendered(BASE), namespace.name, served)
        if manifest["kind"] in ("ServiceAccount", "Role", "RoleBinding")
    ]
    applied(accounts, cluster.kubeconfig)
    who = f"--as=system:serviceaccount:{namespace.name}:"
    for verb, resource in (("list", "pods"), ("get", "secrets"), ("create", "pods"), ("get", "configmaps")):
        said = _may(cluster, verb, resource, f"{who}rexec-worker", namespace.name)
        assert said == "no", (verb, resource)
    assert _may(cluster, "create", "pods", f"{who}rexec-autoscaler", namespace.name) == "yes"
    for verb, resource in (("get", "secrets"), ("list", "secrets"), ("create", "pods/exec"), ("patch", "deployments")):
        said = _may(cluster, verb, resource, f"{who}rexec-autoscaler", namespace.name)
        assert said == "no", (verb, resource)


def _may(cluster: Cluster, verb: str, resource: str, who: str, namespace: str) -> str:
    # Its exit code is 1 for "no".
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": who.removeprefix("--as="),
            "resourceAttributes": {
                "namespace": namespace,
                "verb": verb,
                "resource": resource.split("/")[0],
                "subresource": resource.partition("/")[2],
                "group": "apps" if resource == "deployments" else "",
            },
        },
    }
    said = kubectl("create", "-o", "json", "-f", "-", kubeconfig=cluster.kubeconfig, given=json.dumps(review))
    return "yes" if json.loads(said)["status"]["allowed"] else "no"
