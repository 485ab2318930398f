"""Who the autoscaler is to the API server: the service account of its own pod, a token, or nobody that can be used."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.aio.config import incluster_config

from integration.kubernetes.cluster import Cluster
from integration.kubernetes.namespace import Namespace, heard
from rexec.autoscale import kubernetes_api
from rexec.autoscale.kubernetes_api import KubernetesUnusable, open_api
from rexec.autoscale.kubernetes_provider import KubernetesProvider, open_provider
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings

RIGHTS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "create", "delete"]}
POOL = PoolSettings(name="cpu", image="example.com/rexec:1")


@pytest.fixture
async def pod(cluster: Cluster, namespace: Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process looks like one in a pod of the namespace, with the rights over pods that an autoscaler needs; the directory
    with its token."""
    config = yaml.safe_load((await namespace.user(tmp_path, RIGHTS)).read_text())
    server = urlsplit(config["clusters"][0]["cluster"]["server"])
    authority = tmp_path / "ca.crt"
    authority.write_bytes(base64.b64decode(config["clusters"][0]["cluster"]["certificate-authority-data"]))
    (tmp_path / "token").write_text(config["users"][0]["user"]["token"])
    (tmp_path / "namespace").write_text(f"{namespace.name}\n")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", server.hostname or "")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port or 443))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setattr(kubernetes_api, "_NAMESPACE_FILE", tmp_path / "namespace")
    return tmp_path


async def _starts(provider: KubernetesProvider) -> None:
    running = asyncio.create_task(provider.run())
    try:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        assert set(provider.machines()) == {"cpu-1"}
    finally:
        running.cancel()


async def test_in_a_pod_it_is_the_pods_service_account_in_the_pods_namespace(pod: Path, namespace: Namespace) -> None:
    settings = AutoscaleSettings(server="grpc://f:1", pools=(POOL,))
    async with open_provider(settings, Path()) as provider:
        await _starts(provider)
    assert [pod["metadata"]["name"] for pod in await namespace.pods()] == ["cpu-1"]


async def test_a_kubeconfig_that_is_named_counts_more_than_the_pod(
    pod: Path, cluster: Cluster, namespace: Namespace
) -> None:
    async with open_api(str(cluster.kubeconfig)) as api:
        assert api.namespace == "default"
        await api.get("/api/v1/nodes")  # an administrator may


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(None, "there is no kubeconfig"), ("{}", "Expected key current-context"), ("[", "flow node")],
)
async def test_a_kubeconfig_that_is_none_is_named(text: str | None, complaint: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(KubernetesUnusable, match=complaint) as refusal:
        async with open_api(str(file)):
            pass
    assert str(file) in str(refusal.value)


async def test_a_token_that_is_not_accepted_is_said_and_a_pod_without_one_is_unusable(
    pod: Path, namespace: Namespace
) -> None:
    (pod / "token").write_text("nobody")
    settings = AutoscaleSettings(server="grpc://f:1", pools=(POOL,))
    async with open_provider(settings, Path()) as provider:
        running = asyncio.create_task(provider.run())
        try:
            await heard(provider, lambda: "Unauthorized" in provider.problem, "the refusal")
        finally:
            running.cancel()
    (pod / "token").unlink()
    with pytest.raises(KubernetesUnusable, match="token file does not exist"):
        async with open_provider(settings, Path()):
            pass
