"""The examples for the cluster's own autoscalers: a HorizontalPodAutoscaler through a real API server, and the calls of KEDA.

The API server reaches a pod of the tests by the address of its process: the Service of the example is made to name it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc import aio

from integration.conformance.actions import run
from integration.conformance.client import connected
from integration.conformance.options import Options
from integration.kubernetes.cluster import Cluster
from integration.kubernetes.kubelet import NODES
from integration.kubernetes.manifests import applied, on_nodes, within
from integration.kubernetes.namespace import Namespace, until
from integration.kubernetes.nodes import Nodes
from integration.server import Server, running_server
from protos.keda import externalscaler_pb2 as keda_pb2
from protos.methods import methods_of
from rexec.autoscale.kubernetes_api import ApiRefusal
from rexec.keda import WANTED
from tests.edge.certificates import Authority
from tests.kustomized import KUBERNETES, Manifest, kubectl

EXAMPLES = KUBERNETES / "examples"
GROUP = "/apis/external.metrics.k8s.io/v1beta1"
ACTIONS = 8
ACTION_SECONDS = 6
MOST_REPLICAS = 4
SCALE_SECONDS = 120.0
_OF_THE_CLUSTER = {
    "APIService": "/apis/apiregistration.k8s.io/v1/apiservices",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
"""Kinds that are in no namespace, and where they are."""


def example(name: str, server: Server, namespace: str, nodes: Nodes, served: list[str]) -> list[Manifest]:
    """An example for these nodes and this server, and with one slot for each worker."""
    text = (EXAMPLES / f"{name}.yaml").read_text().replace("rexec:8980", server.address)
    manifests = within(yaml.safe_load_all(text.replace("--slots=4", "--slots=1")), namespace, served)
    on_nodes(manifests, NODES, nodes.name)
    for manifest in manifests:
        if manifest["kind"] in _OF_THE_CLUSTER:
            del manifest["metadata"]["namespace"]
            for subject in manifest.get("subjects", ()):
                subject["namespace"] = "kube-system"
        if manifest["kind"] == "Deployment":
            spec = manifest["spec"]["template"]["spec"]
            for container in spec["containers"]:
                container["resources"] = {}
    return manifests


def secret(name: str, files: dict[str, bytes]) -> Manifest:
    data = {key: base64.b64encode(content).decode() for key, content in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """It asks nobody for a token, and has no workers of its own."""
    with running_server(tmp_path / "server", slots=0) as running:
        yield running


@pytest.fixture
def served(cluster: Cluster) -> list[str]:
    return kubectl("api-versions", kubeconfig=cluster.kubeconfig).split()


@pytest.fixture
async def surroundings(cluster: Cluster, namespace: Namespace) -> None:
    """What the examples have of the rest of an installation."""
    accounts: Manifest = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "rexec-worker"}}
    config: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "rexec-worker-config"},
        "data": {"worker.toml": "[worker]\n"},
    }
    tokens = [secret(f"rexec-{name}-token", {"token": b"nobody-asks-for-it"}) for name in ("worker", "autoscaler")]
    applied(within([accounts, config, *tokens], namespace.name, ()), cluster.kubeconfig)


class Api:
    """The group external.metrics.k8s.io as a user of the cluster sees it."""

    def __init__(self, cluster: Cluster, namespace: Namespace) -> None:
        self._cluster = cluster
        self._namespace = namespace

    def raw(self, path: str) -> dict[str, Any]:
        """kubectl get --raw. Raises AssertionError with the API server's complaint."""
        return dict(json.loads(kubectl("get", "--raw", path, kubeconfig=self._cluster.kubeconfig)))

    def value(self, metric: str, selector: str = "pool%3Dlinux") -> str:
        path = f"{GROUP}/namespaces/{self._namespace.name}/{metric}?labelSelector={selector}"
        (item,) = self.raw(path)["items"]
        return str(item["value"])


async def _pod_of(namespace: Namespace, component: str) -> str:
    """The address of a pod that runs."""
    found: list[str] = []

    async def runs() -> bool:
        for pod in await namespace.pods():
            is_it = pod["metadata"]["labels"].get("app.kubernetes.io/component") == component
            if is_it and pod["status"].get("phase") == "Running":
                found.append(pod["status"]["podIP"])
        return bool(found)

    await until(runs, f"a pod of {component}")
    return found[0]


@asynccontextmanager
async def registered(
    cluster: Cluster, namespace: Namespace, server: Server, nodes: Nodes, served: list[str], folder: Path
) -> AsyncIterator[Api]:
    """The API server asks our process meanwhile."""
    if cluster.scripts is None:
        raise AssertionError(
            "the API server of $KUBECONFIG does not reach processes of this machine, as this test has it"
        )
    authority = Authority(folder)
    pair = authority.pair("server", hosts=[f"rexec-external-metrics.{namespace.name}.svc"])
    own = secret(
        "rexec-external-metrics-tls", {"tls.crt": pair.certificate.read_bytes(), "tls.key": pair.key.read_bytes()}
    )
    found = json.loads(
        await namespace.api.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
    )
    front_proxy = found["data"]["requestheader-client-ca-file"]
    trusted: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "rexec-front-proxy"},
        "data": {"ca.crt": front_proxy},
    }
    manifests = example("apiservice", server, namespace.name, nodes, served)
    (service,) = (each for each in manifests if each["kind"] == "APIService")
    (deployment,) = (each for each in manifests if each["kind"] == "Deployment")
    deployment["spec"]["replicas"] = 1  # the other one would have no name
    deployment["spec"]["template"]["spec"]["containers"][0]["args"].append("--front-proxy-name=front-proxy-client")
    service["spec"]["caBundle"] = base64.b64encode(authority.file.read_bytes()).decode()
    service["spec"]["service"] |= {"namespace": namespace.name, "port": 8443}
    first = [each for each in manifests if each["kind"] not in ("APIService", "Service")]
    applied([*within([own, trusted], namespace.name, ()), *first], cluster.kubeconfig)
    try:
        address = await _pod_of(namespace, "external-metrics")
        named: Manifest = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "rexec-external-metrics", "namespace": namespace.name},
            "spec": {"type": "ExternalName", "externalName": address},
        }
        applied([named], cluster.kubeconfig)
        # Server-side apply of this kind makes API servers of 1.20 panic.
        await namespace.api.post(_OF_THE_CLUSTER["APIService"], service)

        async def is_available() -> bool:
            found = await namespace.api.get(f"{_OF_THE_CLUSTER['APIService']}/{service['metadata']['name']}")
            status = json.loads(found).get("status", {})
            said.update({each["type"]: each for each in status.get("conditions", ())})
            try:
                await namespace.api.get(GROUP)
            except ApiRefusal:  # what is available is found a moment later
                return False
            return bool(said.get("Available", {}).get("status") == "True")

        said: dict[str, Any] = {}
        try:
            await until(is_available, "the API to be available")
        except AssertionError as error:
            raise AssertionError(f"{error}; the API server says {said}; {nodes.output('rexec')[-2000:]}") from error
        yield Api(cluster, namespace)
    finally:
        for manifest in manifests:
            if manifest["kind"] in _OF_THE_CLUSTER:
                with suppress(ApiRefusal):
                    place = f"{_OF_THE_CLUSTER[manifest['kind']]}/{manifest['metadata']['name']}"
                    await namespace.api.delete(place, {})
        await _deleted(namespace, "deployments", "rexec-external-metrics")


async def _deleted(namespace: Namespace, plural: str, name: str) -> None:
    with suppress(ApiRefusal):
        path = f"{namespace.path(plural, '/apis/apps/v1')}/{name}"
        await namespace.api.delete(path, {"propagationPolicy": "Background"})


async def _replicas(namespace: Namespace) -> int:
    path = f"{namespace.path('deployments', '/apis/apps/v1')}/rexec-worker-linux"
    return int(json.loads(await namespace.api.get(path))["spec"]["replicas"])


async def _work(server: Server, log: Path, actions: int = ACTIONS) -> None:
    """Actions for the pool that write down that they begin, all of them at once."""
    async with connected(Options(server.address)) as client:
        await client.connect()
        async with asyncio.TaskGroup() as tasks:
            for number in range(actions):
                script = f"echo {number} >> {log}; sleep {ACTION_SECONDS}"
                tasks.create_task(
                    run(client, script, platform=[("Pool", "linux")], do_not_cache=True, request={"timeout": 300.0})
                )


@pytest.mark.usefixtures("surroundings")
async def test_a_horizontal_pod_autoscaler_follows_the_work_and_loses_none(
    cluster: Cluster, namespace: Namespace, server: Server, nodes: Nodes, served: list[str], tmp_path: Path
) -> None:
    async with registered(cluster, namespace, server, nodes, served, tmp_path) as api:
        assert {each["name"] for each in api.raw(GROUP)["resources"]} >= {WANTED, "rexec_busy_slots"}
        assert api.value(WANTED) == "0"
        with pytest.raises(AssertionError, match=r"(?s)cpu.*not found|NotFound|could not find|no metric is named"):
            api.value("cpu")
        with pytest.raises(AssertionError, match="slotsPerWorker is 'many'"):
            api.value(WANTED, "slotsPerWorker%3Dmany")
        manifests = [*example("workers", server, namespace.name, nodes, served)]
        (autoscaler,) = example("hpa", server, namespace.name, nodes, served)
        autoscaler["spec"]["maxReplicas"] = MOST_REPLICAS
        selector = autoscaler["spec"]["metrics"][0]["external"]["metric"]["selector"]["matchLabels"]
        selector |= {"slotsPerWorker": "1", "targetWaitSeconds": "2", "startSeconds": "2"}
        autoscaler["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 0
        applied([*manifests, autoscaler], cluster.kubeconfig)
        log = tmp_path / "begun"
        try:
            began = time.monotonic()
            work = asyncio.create_task(_work(server, log))
            most = 0
            while not (await asyncio.wait({work}, timeout=0.5))[0]:
                assert time.monotonic() - began < SCALE_SECONDS, await _why(namespace, autoscaler)
                most = max(most, await _replicas(namespace))
            await work
            print(f"{ACTIONS} actions on up to {most} replicas in {time.monotonic() - began:.0f} s")
            assert most == MOST_REPLICAS
            ended = time.monotonic()

            async def is_back() -> bool:
                workers = [pod for pod in await namespace.pods() if "rexec-worker-linux" in pod["metadata"]["name"]]
                return await _replicas(namespace) == 1 == len(workers)

            await until(is_back, "a single worker again")
            print(f"1 replica {time.monotonic() - ended:.0f} s later")
            # Whatever workers the autoscaler took away, they ended what they ran: nothing has begun twice.
            assert sorted(map(int, log.read_text().split())) == list(range(ACTIONS))
            gone = [each for each in nodes.containers() if each.pod.startswith("rexec-worker-linux") and each.ended_at]
            assert len(gone) >= MOST_REPLICAS - 1
            assert {each.exit_code for each in gone} == {0}
            assert api.value(WANTED) == "0"
        finally:
            kind = namespace.path("horizontalpodautoscalers", f"/apis/{autoscaler['apiVersion']}")
            with suppress(ApiRefusal):
                await namespace.api.delete(f"{kind}/rexec-worker-linux", {})
            await _deleted(namespace, "deployments", "rexec-worker-linux")


async def _why(namespace: Namespace, autoscaler: Manifest) -> str:
    """What the autoscaler says of itself."""
    kind = namespace.path("horizontalpodautoscalers", f"/apis/{autoscaler['apiVersion']}")
    return (await namespace.api.get(f"{kind}/rexec-worker-linux")).decode()


@pytest.mark.usefixtures("surroundings")
async def test_workers_that_are_taken_away_end_what_they_run(
    cluster: Cluster, namespace: Namespace, server: Server, nodes: Nodes, served: list[str], tmp_path: Path
) -> None:
    (workers,) = example("workers", server, namespace.name, nodes, served)
    workers["spec"]["replicas"] = 2
    applied([workers], cluster.kubeconfig)
    log = tmp_path / "begun"

    async def both_run() -> bool:
        return log.exists() and len(log.read_text().split()) == 2

    async def is_empty() -> bool:
        return not await namespace.pods()

    try:
        work = asyncio.create_task(_work(server, log, 2))
        await until(both_run, "two actions on two workers")
        path = f"{namespace.path('deployments', '/apis/apps/v1')}/rexec-worker-linux"
        await namespace.api.patch(path, {"spec": {"replicas": 0}})
        await work
        await until(is_empty, "the workers to go")
        assert sorted(log.read_text().split()) == ["0", "1"]
        ended = [each for each in nodes.containers() if each.pod.startswith("rexec-worker-linux")]
        assert [each.exit_code for each in ended][-2:] == [0, 0]
    finally:
        await _deleted(namespace, "deployments", "rexec-worker-linux")


@pytest.mark.usefixtures("surroundings")
async def test_keda_would_start_the_first_worker_and_as_many_as_are_wanted(
    cluster: Cluster, namespace: Namespace, server: Server, nodes: Nodes, served: list[str]
) -> None:
    manifests = example("keda-scaledobject", server, namespace.name, nodes, served)
    (scaled,) = (each for each in manifests if each["kind"] == "ScaledObject")
    (trigger,) = scaled["spec"]["triggers"]
    said = {**trigger["metadata"], "slotsPerWorker": "1"}
    ref = keda_pb2.ScaledObjectRef(name="rexec-worker-linux", namespace=namespace.name, scalerMetadata=said)
    methods = methods_of(keda_pb2, "ExternalScaler")
    applied([each for each in manifests if each is not scaled], cluster.kubeconfig)
    try:
        address = f"{await _pod_of(namespace, 'keda')}:{trigger['metadata']['scalerAddress'].rpartition(':')[2]}"
        async with asyncio.timeout(60), aio.insecure_channel(address) as channel:
            await channel.channel_ready()

            def made(kind: Any, name: str) -> Any:
                method = methods[name]
                return kind(method.path, method.request_type.SerializeToString, method.response_type.FromString)

            told = made(channel.unary_stream, "StreamIsActive")(ref)
            assert not (await told.read()).result
            work = [asyncio.create_task(_one(server)) for _ in range(3)]
            began = time.monotonic()
            assert (await told.read()).result
            print(f"active {time.monotonic() - began:.2f} s after the first Execute")
            (spec,) = (await made(channel.unary_unary, "GetMetricSpec")(ref)).metricSpecs
            request = keda_pb2.GetMetricsRequest(scaledObjectRef=ref, metricName=spec.metricName)

            async def wanted() -> bool:
                (value,) = (await made(channel.unary_unary, "GetMetrics")(request)).metricValues
                return bool(value.metricValueFloat / spec.targetSizeFloat == 3)

            await until(wanted, "a figure of 3")
            for each in work:
                each.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            told.cancel()
            with suppress(asyncio.CancelledError, grpc.RpcError):
                await told.read()
    finally:
        await _deleted(namespace, "deployments", "rexec-keda")


async def _one(server: Server) -> None:
    async with connected(Options(server.address)) as client:
        await client.connect()
        await run(client, "true", platform=[("Pool", "linux")], do_not_cache=True, request={"timeout": 60.0})
