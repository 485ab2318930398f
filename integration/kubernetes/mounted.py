"""What ConfigMaps, Secrets and Services are to a pod that is a process of this machine (integration/kubernetes/kubelet.py).

Files of ConfigMaps and Secrets lie in the directory that stands for their volume. There is no network of pods and no DNS: in
what a pod is configured with, 0.0.0.0 becomes the pod's own address, and the name of a Service, in grpc://NAME:PORT, that of a
pod behind it. A pod waits for all of these, as it would.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, Unreachable

RETRY_SECONDS = 0.2
_SERVICE = re.compile(r"(?<=grpc://)(?P<name>[a-z][a-z0-9-]*)(?=:\d)")


class Surroundings:
    """What one pod finds in its namespace."""

    def __init__(self, api: KubernetesApi, pod: dict[str, Any], ip: str) -> None:
        self._api = api
        self._pod = pod
        self._ip = ip
        self._root = f"/api/v1/namespaces/{pod['metadata']['namespace']}"

    async def located(self, text: str) -> str:
        """With addresses in the place of names. Waits until somebody is there."""
        addresses = {match["name"]: await self._address(match["name"]) for match in _SERVICE.finditer(text)}
        found = _SERVICE.sub(lambda match: addresses[match["name"]], text)
        return re.sub(r"(?<![\d.])0\.0\.0\.0(?=:)", self._ip, found)

    async def lay_out(self, volume: dict[str, Any], directory: Path, placed: Callable[[str], str]) -> None:
        """The files of a ConfigMap or Secret; nothing for other volumes. `placed` puts directories in the place of paths where
        volumes are mounted, which is done in TOML files."""
        if name := volume.get("configMap", {}).get("name"):
            found = await self._awaited(f"{self._root}/configmaps/{name}")
            files = {key: text.encode() for key, text in (found.get("data") or {}).items()}
        elif name := volume.get("secret", {}).get("secretName"):
            found = await self._awaited(f"{self._root}/secrets/{name}")
            files = {key: base64.b64decode(text) for key, text in (found.get("data") or {}).items()}
        else:
            return
        for key, content in files.items():
            if key.endswith(".toml"):
                content = (await self.located(placed(content.decode()))).encode()
            _write(directory / key, content)

    async def _address(self, service: str) -> str:
        try:
            selector = json.loads(await self._api.get(f"{self._root}/services/{service}"))["spec"]["selector"].items()
        except ApiRefusal as error:
            if error.code != 404:
                raise
            return service
        if selector <= self._pod["metadata"].get("labels", {}).items():
            return self._ip
        query = {"labelSelector": ",".join(f"{key}={value}" for key, value in selector)}
        while True:
            with contextlib.suppress(Unreachable):
                for pod in json.loads(await self._api.get(f"{self._root}/pods", query))["items"]:
                    if pod["status"].get("phase") == "Running":
                        return str(pod["status"]["podIP"])
            await asyncio.sleep(RETRY_SECONDS)

    async def _awaited(self, path: str) -> dict[str, Any]:
        while True:
            try:
                return dict(json.loads(await self._api.get(path)))
            except (ApiRefusal, Unreachable) as error:
                if isinstance(error, ApiRefusal) and error.code != 404:
                    raise
            await asyncio.sleep(RETRY_SECONDS)


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
