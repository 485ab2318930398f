"""What was spent, kept in a ConfigMap beside the pods: an autoscaler in a pod has no file that outlives it."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, Unreachable
from rexec.autoscale.kubernetes_pod import INSTALLATION_LABEL, MANAGED_BY, Origin, owner_references
from rexec.autoscale.ledger import LedgerUnusable

_KEY: Final = "ledger"


class _ConfigMap(msgspec.Struct, frozen=True):
    data: dict[str, str] | None = None


class KubernetesLedger:
    """A LedgerStore (rexec/autoscale/ledger.py) in the ConfigMap INSTALLATION-autoscaler."""

    def __init__(self, api: KubernetesApi, namespace: str, origin: Origin) -> None:
        self._api = api
        self._origin = origin
        self._name = f"{origin.installation}-autoscaler"
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"
        self._place = f"the ConfigMap {self._name} in namespace {namespace}"

    async def load(self) -> str:
        """See LedgerStore."""
        try:
            found = msgspec.json.decode(await self._api.get(f"{self._path}/{self._name}"), type=_ConfigMap)
        except (ApiRefusal, Unreachable, msgspec.DecodeError) as error:
            if isinstance(error, ApiRefusal) and error.code == 404:
                return ""
            raise LedgerUnusable(f"{self._place} cannot be read: {error}") from error
        return (found.data or {}).get(_KEY, "")

    async def save(self, text: str) -> None:
        """See LedgerStore."""
        try:
            try:
                await self._api.patch(f"{self._path}/{self._name}", {"data": {_KEY: text}})
            except ApiRefusal as error:
                if error.code != 404:
                    raise
                await self._api.post(self._path, self._made(text))
        except (ApiRefusal, Unreachable) as error:
            raise LedgerUnusable(f"{self._place} cannot be written: {error}") from error

    def _made(self, text: str) -> dict[str, Any]:
        labels = {MANAGED_BY: "rexec", INSTALLATION_LABEL: self._origin.installation}
        metadata = {"name": self._name, "labels": labels, **owner_references(self._origin.owner)}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {_KEY: text}}
