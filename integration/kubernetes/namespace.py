"""A namespace of a test's own, and what an administrator does in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, open_api
from rexec.autoscale.kubernetes_provider import KubernetesProvider, open_provider
from rexec.autoscale.settings import AutoscaleSettings

PATIENCE_SECONDS = 60.0


class Namespace:
    """A namespace, through an administrator's eyes."""

    def __init__(self, api: KubernetesApi, name: str, kubeconfig: Path) -> None:
        self.api = api
        self.name = name
        self.kubeconfig = kubeconfig

    async def pods(self) -> list[dict[str, Any]]:
        return list(json.loads(await self.api.get(self.path("pods")))["items"])

    async def make(self, plural: str, body: dict[str, Any], group: str = "/api/v1") -> dict[str, Any]:
        """Create an object; `group` is the beginning of its path."""
        return dict(json.loads(await self.api.post(self.path(plural, group), body)))

    async def delete(self, name: str, *, grace_seconds: int = 0) -> None:
        """A pod, at once unless a grace is given."""
        await self.api.delete(f"{self.path('pods')}/{name}", {"gracePeriodSeconds": grace_seconds})

    async def evict(self, pod: str) -> None:
        """Have a pod leave as a node's drain has it."""
        for version in ("policy/v1", "policy/v1beta1"):
            body = {"apiVersion": version, "kind": "Eviction", "metadata": {"name": pod}}
            try:
                await self.api.post(f"{self.path('pods')}/{pod}/eviction", body)
            except ApiRefusal as error:
                # Servers before 1.22 know only the second one.
                if error.code != 400 or version != "policy/v1":
                    raise
            else:
                return

    async def set_status(self, pod: str, status: dict[str, Any]) -> None:
        """What a kubelet would say of a pod."""
        await self.api.patch(f"{self.path('pods')}/{pod}/status", {"status": status})

    def path(self, plural: str, group: str = "/api/v1") -> str:
        return f"{group}/namespaces/{self.name}/{plural}"

    async def user(self, folder: Path, *rules: dict[str, Any]) -> Path:
        """The kubeconfig of a service account with nothing but these rights, which may be none."""
        name = f"user-{uuid.uuid4().hex[:6]}"
        await self.make("serviceaccounts", {"metadata": {"name": name}})
        await self.allow(name, *rules)
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        answer = json.loads(await self.api.post(f"{self.path('serviceaccounts')}/{name}/token", request))
        config = yaml.safe_load(self.kubeconfig.read_text())
        config["users"] = [
            {"name": entry["name"], "user": {"token": answer["status"]["token"]}} for entry in config["users"]
        ]
        file = folder / f"{name}.kubeconfig"
        file.write_text(yaml.safe_dump(config))
        return file

    async def allow(self, user: str, *rules: dict[str, Any]) -> None:
        """Give a service account these rights, too."""
        if not rules:
            return
        group = "/apis/rbac.authorization.k8s.io/v1"
        name = f"{user}-{uuid.uuid4().hex[:6]}"
        await self.make("roles", {"metadata": {"name": name}, "rules": list(rules)}, group)
        binding = {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": user, "namespace": self.name}],
        }
        await self.make("rolebindings", binding, group)


@asynccontextmanager
async def own_namespace(kubeconfig: Path) -> AsyncIterator[Namespace]:
    """A new namespace in which pods can be made; deleted at the end, with all that is in it."""
    name = f"rexec-test-{uuid.uuid4().hex[:8]}"
    async with open_api(str(kubeconfig)) as api:
        await api.post("/api/v1/namespaces", {"metadata": {"name": name}})
        namespace = Namespace(api, name, kubeconfig)
        try:
            # Pods are refused until a controller has made it.
            await until(
                lambda: _is_there(api, f"/api/v1/namespaces/{name}/serviceaccounts/default"), "its service account"
            )
            yield namespace
        finally:
            for pod in await namespace.pods():
                with contextlib.suppress(ApiRefusal):
                    await namespace.delete(pod["metadata"]["name"])
            await api.delete(f"/api/v1/namespaces/{name}", {})


@asynccontextmanager
async def watching(
    settings: AutoscaleSettings, kubeconfig: Path, namespace: str, directory: Path = Path()
) -> AsyncIterator[KubernetesProvider]:
    """A provider that runs meanwhile."""
    settings = AutoscaleSettings(
        installation=settings.installation,
        server=settings.server or "grpc://127.0.0.1:1",
        namespace=namespace,
        kubeconfig=str(kubeconfig),
        pools=settings.pools,
    )
    async with open_provider(settings, directory) as provider:
        running = asyncio.create_task(provider.run())
        try:
            yield provider
        finally:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running


async def heard(provider: KubernetesProvider, holds: Callable[[], bool], what: str) -> None:
    """Return once the provider has come to know something. Raises AssertionError naming it, with what is known instead."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not holds():
                provider.changed.clear()
                await provider.changed.wait()
    except TimeoutError:
        raise AssertionError(
            f"waited in vain for {what}; problem {provider.problem!r}, machines {list(provider.machines().values())}"
        ) from None


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Return once the cluster says so; it is asked again and again. Raises AssertionError naming what was waited for."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not await condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {what}")
        await asyncio.sleep(0.1)


async def _is_there(api: KubernetesApi, path: str) -> bool:
    try:
        await api.get(path)
    except ApiRefusal as error:
        if error.code != 404:
            raise
        return False
    return True
