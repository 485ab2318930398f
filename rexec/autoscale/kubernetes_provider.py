"""Workers as pods: created and deleted by name, watched, and found again after a restart by their labels.

What is asked for twice is there once, because a pod's name is the worker's. A pod is deleted with the uid that is known of it, so
that one of the same name which somebody else has made since is spared.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, KubernetesUnusable, Unreachable, open_api
from rexec.autoscale.kubernetes_ledger import KubernetesLedger
from rexec.autoscale.kubernetes_messages import OwnerReference, Pod
from rexec.autoscale.kubernetes_owner import owner_of
from rexec.autoscale.kubernetes_pod import INSTALLATION_LABEL, Origin, pod_manifest, selector
from rexec.autoscale.kubernetes_problem import machine_of
from rexec.autoscale.kubernetes_refusal import refused
from rexec.autoscale.kubernetes_template import TemplateUnusable, read_template
from rexec.autoscale.kubernetes_watch import PodWatch
from rexec.autoscale.provider import Machine, Refused
from rexec.autoscale.settings import AutoscaleSettings, PoolKind, PoolSettings

log = structlog.get_logger()

MAX_REQUESTS: Final = 8
"""At once, so that a burst of pods does not get this client throttled."""


class KubernetesProvider:
    """A Provider (rexec/autoscale/provider.py) over one namespace of a cluster."""

    def __init__(
        self,
        api: KubernetesApi,
        settings: AutoscaleSettings,
        namespace: str,
        directory: Path,
        owner: OwnerReference | None = None,
    ) -> None:
        """`directory` is where relative names of pod templates begin. Use `open_provider`, which finds out the rest."""
        self._api = api
        self._namespace = namespace
        self._directory = directory
        self._origin = Origin(installation=settings.installation, server=settings.server, owner=owner)
        self.changed = asyncio.Event()
        self.ledger = KubernetesLedger(api, namespace, self._origin)
        """Where what was spent outlives this process."""
        self._machines: dict[str, tuple[Pod, Machine]] = {}
        self._watch = PodWatch(api, namespace, selector(settings.installation), self.changed.set)
        self._requests = asyncio.Semaphore(MAX_REQUESTS)

    @property
    def problem(self) -> str:
        """Why nothing is heard of the pods."""
        return self._watch.problem

    def machines(self) -> Mapping[str, Machine]:
        """A machine for each pod; those that run stay here while the API server is away."""
        known = self._machines
        # A pod's state is one object until the next event: only what has changed is looked at.
        self._machines = {
            name: known[name] if name in known and known[name][0] is pod else (pod, machine_of(pod))
            for name, pod in self._watch.pods.items()
        }
        return {name: machine for name, (_, machine) in self._machines.items()}

    async def start(self, pool: PoolSettings, name: str, image: str = "") -> None:
        """Create the pod."""
        if name in self._watch.pods:
            return
        self._require_heard(f"start a pod in namespace {self._namespace}")
        manifest = pod_manifest(pool, name, image, self._origin, await self._template(pool))
        async with self._requests:
            try:
                pod = await self._create(name, manifest)
            except (ApiRefusal, Unreachable) as error:
                raise refused(error, f"start a pod in namespace {self._namespace}") from error
        self._watch.put(pod)

    async def remove(self, name: str, grace_seconds: float) -> None:
        """Delete the pod: its worker drains, and is killed after the grace."""
        pod = self._watch.pods.get(name)
        if pod is None:
            return
        self._require_heard(f"delete pod {name}")
        async with self._requests:
            try:
                await self._delete(pod, grace_seconds)
            except (ApiRefusal, Unreachable) as error:
                raise refused(error, f"delete pod {name}") from error

    async def run(self) -> None:
        """List and watch until cancelled."""
        await self._watch.run()

    def _require_heard(self, doing: str) -> None:
        """Spare a server that is not well more requests, and do not start twice what has not been listed yet."""
        if self._watch.problem:
            raise Refused(f"cannot {doing}: {self._watch.problem}")

    async def _template(self, pool: PoolSettings) -> dict[str, Any] | None:
        """Read each time: a mounted ConfigMap changes without a restart."""
        if not pool.pod_template:
            return None
        try:
            return await asyncio.to_thread(read_template, self._directory / pool.pod_template)
        except TemplateUnusable as error:
            raise Refused(str(error), lasting=True) from error

    async def _create(self, name: str, manifest: dict[str, Any]) -> Pod:
        try:
            answer = await self._api.post(self._pods_path, manifest)
        except ApiRefusal as error:
            if error.code != 409 or error.reason != "AlreadyExists":
                raise
            pod = await self._read(name)
            if (pod.metadata.labels or {}).get(INSTALLATION_LABEL) != self._origin.installation:
                raise Refused(
                    f"cannot start pod {name}: there is one of that name that is not ours", lasting=True
                ) from None
            return pod
        return _pod(answer)

    async def _delete(self, pod: Pod, grace_seconds: float) -> None:
        name, uid = pod.metadata.name, pod.metadata.uid
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            # A negative one is refused, and 0 would take the pod away before its container has ended.
            "gracePeriodSeconds": max(1, math.ceil(grace_seconds)),
            "preconditions": {"uid": uid},
        }
        for last in (False, True):
            try:
                left = _pod(await self._api.delete(f"{self._pods_path}/{name}", options))
            except ApiRefusal as error:
                if error.code == 404:
                    self._watch.drop(uid)
                    return
                if error.code != 409 or last:
                    raise
                # Another pod of that name, or one that changed in that moment.
                if await self._uid_of(name) != uid:
                    self._watch.drop(uid)
                    return
            else:
                if left.metadata.uid == uid:
                    self._watch.put(left)
                return

    async def _uid_of(self, name: str) -> str:
        try:
            return (await self._read(name)).metadata.uid
        except ApiRefusal as error:
            if error.code == 404:
                return ""
            raise

    async def _read(self, name: str) -> Pod:
        return _pod(await self._api.get(f"{self._pods_path}/{name}"))

    @property
    def _pods_path(self) -> str:
        return f"/api/v1/namespaces/{self._namespace}/pods"


@asynccontextmanager
async def open_provider(settings: AutoscaleSettings, directory: Path) -> AsyncIterator[KubernetesProvider]:
    """A provider for the pools of kind "kubernetes", to be `run`. `directory`: that of the configuration.

    Raises KubernetesUnusable if no cluster is configured, or the settings cannot make pods.
    """
    await asyncio.to_thread(_require_usable, settings, directory)
    async with open_api(settings.kubeconfig, settings.namespace) as api:
        owner = await owner_of(api, api.namespace)
        log.info(
            "pods of workers",
            api_server=api.address,
            namespace=api.namespace,
            owner=f"{owner.kind} {owner.name}" if owner is not None else "none",
        )
        yield KubernetesProvider(api, settings, api.namespace, directory, owner)


def _require_usable(settings: AutoscaleSettings, directory: Path) -> None:
    if not settings.server:
        raise KubernetesUnusable(
            "[autoscale] server is empty, expected where the workers in pods connect: grpc[s]://HOST:PORT"
        )
    for pool in settings.pools:
        if pool.kind is not PoolKind.KUBERNETES:
            continue
        template: dict[str, Any] | None = None
        if pool.pod_template:
            try:
                template = read_template(directory / pool.pod_template)
            except TemplateUnusable as error:
                raise KubernetesUnusable(f"pool {pool.name}: {error}") from error
        if pool.container_images:
            if not pool.image:
                raise KubernetesUnusable(
                    f"pool {pool.name}: image is empty, expected the one of rexec, from which the agent is brought along"
                )
            continue
        made = pod_manifest(
            pool, "probe", "", Origin(installation=settings.installation, server=settings.server), template
        )
        if not all(container.get("image") for container in made["spec"]["containers"]):
            raise KubernetesUnusable(
                f"pool {pool.name}: image is empty, expected that of rexec, or one in its pod_template"
            )


def _pod(answer: bytes) -> Pod:
    try:
        return msgspec.json.decode(answer, type=Pod)
    except msgspec.DecodeError as error:
        raise Unreachable(f"the API server's answer makes no sense: {error}") from error
