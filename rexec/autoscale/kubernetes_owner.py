"""Whose the pods of workers are: what the autoscaler itself was installed as, so that they vanish with it.

Not the autoscaler's own pod if something stands above it: that one comes and goes, and workers outlive it. The names of the pod
and its namespace come from the environment (downward API): POD_NAME and POD_NAMESPACE.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec
import structlog

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, Unreachable
from rexec.autoscale.kubernetes_messages import Metadata, OwnerReference

log = structlog.get_logger()

_MAX_STEPS: Final = 5
_PLURALS: Final = {
    "Pod": "pods",
    "ReplicaSet": "replicasets",
    "Deployment": "deployments",
    "StatefulSet": "statefulsets",
    "DaemonSet": "daemonsets",
    "Job": "jobs",
    "CronJob": "cronjobs",
}


class _Owned(msgspec.Struct, frozen=True, rename="camel"):
    metadata: Metadata


async def owner_of(
    api: KubernetesApi, namespace: str, environment: Mapping[str, str] = os.environ
) -> OwnerReference | None:
    """The top of the chain of owners of this process's pod. None if it runs in no pod, in another namespace (an owner has to be
    in that of what it owns), or may not be read."""
    pod = environment.get("POD_NAME", "")
    if not pod or environment.get("POD_NAMESPACE", namespace) != namespace:
        return None
    at = OwnerReference(api_version="v1", kind="Pod", name=pod, uid="")
    try:
        for _ in range(_MAX_STEPS):
            found = msgspec.json.decode(await api.get(_path(at, namespace)), type=_Owned).metadata
            if at.uid and at.uid != found.uid:
                return None  # deleted, and another one made, in between
            at = msgspec.structs.replace(at, uid=found.uid)
            above = [owner for owner in found.owner_references or () if owner.controller]
            if not above:
                return at
            at = above[0]
            if at.kind not in _PLURALS:
                return at  # of an operator; what it is itself part of is not ours to know
    except (ApiRefusal, Unreachable, msgspec.DecodeError) as error:
        log.warning("pods of workers will have no owner: uninstalling will not delete them", reason=str(error))
    return None


def _path(owner: OwnerReference, namespace: str) -> str:
    root = "/api/v1" if owner.api_version == "v1" else f"/apis/{owner.api_version}"
    return f"{root}/namespaces/{namespace}/{_PLURALS[owner.kind]}/{owner.name}"
