"""An installation of deploy/kubernetes in a test's cluster, whose pods are processes of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import yaml

from integration.kubernetes.cluster import Cluster
from integration.kubernetes.kubelet import NODES
from integration.kubernetes.manifests import applied, on_nodes, volumes_for, within
from integration.kubernetes.namespace import Namespace, until
from integration.kubernetes.nodes import Nodes, running_nodes
from tests.kustomized import kubectl, rendered, secrets


class Installed:
    """An installation whose pods are processes of this machine."""

    def __init__(self, namespace: Namespace, client_token: str, nodes: Nodes) -> None:
        self.namespace = namespace
        self.client_token = client_token
        self.nodes = nodes

    async def workers(self) -> list[dict[str, Any]]:
        """The pods that the autoscaler has made."""
        return [
            pod
            for pod in await self.namespace.pods()
            if pod["metadata"]["labels"].get("app.kubernetes.io/managed-by") == "rexec"
        ]

    async def address(self, component: str) -> str:
        """Where one of the pods that clients connect to answers."""
        found: list[str] = []

        async def answers() -> bool:
            for pod in await self.namespace.pods():
                if (
                    pod["metadata"]["labels"].get("app.kubernetes.io/component") == component
                    and pod["status"].get("phase") == "Running"
                ):
                    target = f"{pod['status']['podIP']}:8980"
                    async with grpc.aio.insecure_channel(target) as channel:
                        try:
                            await asyncio.wait_for(channel.channel_ready(), 1)
                        except TimeoutError:
                            continue
                    found.append(target)
            return bool(found)

        await until(answers, f"{component} to answer; {await self.said()}")
        return found[0]

    async def said(self) -> str:
        """What all containers have printed, for people."""
        return self.nodes.output("rexec")[-3000:] + self.nodes.output()[-2000:]


@asynccontextmanager
async def installation(
    directory: Path, cluster: Cluster, namespace: Namespace, folder: Path, account: str
) -> AsyncIterator[Installed]:
    """Apply it and give its autoscaler the rights of its own account and nobody else's."""
    keys = secrets(folder / "secrets")
    manifests = within(
        [*rendered(directory), *keys], namespace.name, kubectl("api-versions", kubeconfig=cluster.kubeconfig).split()
    )
    kubeconfig = folder / "autoscaler.kubeconfig"
    with running_nodes(cluster.kubeconfig, folder / "nodes", [f"--image-env=KUBECONFIG={kubeconfig}"]) as nodes:
        on_nodes(manifests, NODES, nodes.name)
        for manifest in manifests:
            for name, text in manifest.get("data", {}).items():
                if name.endswith(".toml") and manifest["kind"] == "ConfigMap":
                    manifest["data"][name] = text.replace("min = 0\n", "min = 0\nidle_seconds = 3.0\n").replace(
                        "slots = 4 ", "slots = 1 "
                    )
        accounts = [manifest for manifest in manifests if manifest["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
        applied(accounts, cluster.kubeconfig)
        token = kubectl(
            "create", "token", account, f"--namespace={namespace.name}", kubeconfig=cluster.kubeconfig
        ).strip()
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        for context in config["contexts"]:
            context["context"]["namespace"] = namespace.name
        kubeconfig.write_text(yaml.safe_dump(config))
        volumes = volumes_for(manifests, namespace.name)
        try:
            applied([*volumes, *manifests], cluster.kubeconfig, "--force-conflicts")
            yield Installed(namespace, (folder / "secrets" / "client.token").read_text(), nodes)
        finally:
            for manifest in manifests:
                if manifest["kind"] in ("Deployment", "StatefulSet"):
                    await namespace.api.delete(
                        namespace.path(f"{manifest['kind'].lower()}s", "/apis/apps/v1")
                        + f"/{manifest['metadata']['name']}",
                        {"propagationPolicy": "Background"},
                    )
            for volume in volumes:
                await namespace.api.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}", {})
