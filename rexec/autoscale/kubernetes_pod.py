"""The pod that a worker runs in, from the settings of its pool and the user's template. Pure.

What the template says stands; what it leaves open is filled in so that the namespace may enforce the restricted Pod Security
standard. Nothing is restarted in place: what has ended says why until the autoscaler has read it, and another pod takes over.

How a pod ends without costing work: SIGTERM makes the worker drain, so there is no preStop hook, and the grace that the kubelet
gives is as long as the worker's, and a little more. That holds for a node's drain and for an eviction, which both delete the pod.
A cluster autoscaler is told to leave nodes with workers alone (safe-to-evict, do-not-disrupt): idle workers go by themselves and
the empty node after them. Which pod goes when there are too many is never Kubernetes' choice here, because no ReplicaSet counts
them: controller.kubernetes.io/pod-deletion-cost would be read by nobody.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rexec.autoscale.kubernetes_messages import OwnerReference
from rexec.autoscale.kubernetes_problem import IMAGE_ANNOTATION, POOL_LABEL, WORKER, WORKER_ANNOTATION
from rexec.autoscale.settings import PoolSettings

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
INSTALLATION_LABEL: Final = "rexec.dev/installation"
HTTP_PORT: Final = 8982
"""Of the worker's /healthz, /readyz and /metrics."""

WORK_DIR: Final = "/work"
AGENT_DIR: Final = "/rexec/agent"
"""Where the agent is brought to, in a pod whose image has none."""

HANDING_BACK_SECONDS: Final = 30
"""Between the end of the worker's grace and SIGKILL: what has not ended is killed and handed back, and outputs are uploaded."""

_DISOWNING: Final = ("ReplicaSet", "StatefulSet", "DaemonSet", "Job")

_USER: Final = 1000
_MIB: Final = 1 << 20


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What all pods of an autoscaler have in common."""

    installation: str
    server: str
    """Where workers connect."""
    owner: OwnerReference | None = None
    """With which the pods are to vanish."""


def selector(installation: str) -> str:
    """Of all pods of the installation."""
    return f"{MANAGED_BY}=rexec,{INSTALLATION_LABEL}={installation}"


def pod_manifest(
    pool: PoolSettings, name: str, image: str, origin: Origin, template: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The Pod to create. `image`: the container image that an action asked for, of a pool with container_images; `template`:
    as kubernetes_template.checked gives it, which is not changed."""
    found = copy.deepcopy(dict(template)) if template is not None else {}
    spec: dict[str, Any] = found.get("spec") or {}
    worker = _worker(spec)
    metadata = _metadata(found.get("metadata") or {}, pool, name, image, origin, str(worker["name"]))
    _fill(
        spec,
        restartPolicy="Never",
        automountServiceAccountToken=False,
        enableServiceLinks=False,
        terminationGracePeriodSeconds=math.ceil(pool.drain_seconds) + HANDING_BACK_SECONDS,
        securityContext={
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    )
    _add(spec, "volumes", "name", {"name": "rexec-work", "emptyDir": {"sizeLimit": str(pool.disk_bytes)}})
    if image:
        _add(spec, "volumes", "name", {"name": "rexec-agent", "emptyDir": {}})
        _add(spec, "initContainers", "name", _agent(pool))
        worker["image"] = image.removeprefix("docker://")
    elif not worker.get("image"):
        worker["image"] = pool.image
    _complete(worker, pool, brought=bool(image), server=origin.server)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _metadata(
    metadata: dict[str, Any], pool: PoolSettings, name: str, image: str, origin: Origin, container: str
) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/name": "rexec",
        "app.kubernetes.io/component": "worker",
        **(metadata.get("labels") or {}),
        MANAGED_BY: "rexec",
        INSTALLATION_LABEL: origin.installation,
        POOL_LABEL: pool.name,
    }
    annotations = {
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
        "karpenter.sh/do-not-disrupt": "true",
        **(metadata.get("annotations") or {}),
        WORKER_ANNOTATION: container,
    }
    if image:
        annotations[IMAGE_ANNOTATION] = image
    return {"name": name, "labels": labels, "annotations": annotations, **owner_references(origin.owner)}


def owner_references(owner: OwnerReference | None) -> dict[str, Any]:
    """The part of an object's metadata that makes it vanish with its owner."""
    if owner is None:
        return {}
    reference = {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
        # `kubectl drain` leaves a node alone on which a pod has no controller. These, though, disown what they control and
        # would not have made themselves.
        "controller": owner.kind not in _DISOWNING,
        "blockOwnerDeletion": False,
    }
    return {"ownerReferences": [reference]}


def _worker(spec: dict[str, Any]) -> dict[str, Any]:
    """The container that the worker runs in: the one called so, else the first, else a new one."""
    containers: list[dict[str, Any]] = spec.setdefault("containers", [])
    if not containers:
        containers.append({"name": WORKER})
    return next((container for container in containers if container["name"] == WORKER), containers[0])


def _complete(worker: dict[str, Any], pool: PoolSettings, *, brought: bool, server: str) -> None:
    """Fill in what the template leaves open of the worker's container."""
    _add(worker, "volumeMounts", "mountPath", {"name": "rexec-work", "mountPath": WORK_DIR})
    # Programs expect it to be writable, and the image is not.
    _add(worker, "volumeMounts", "mountPath", {"name": "rexec-work", "mountPath": "/tmp", "subPath": "tmp"})
    if brought:
        _add(worker, "volumeMounts", "mountPath", {"name": "rexec-agent", "mountPath": AGENT_DIR, "readOnly": True})
    for name, path in (("REXEC_POD_IP", "status.podIP"), ("REXEC_WORKER_NAME", "metadata.name")):
        _add(worker, "env", "name", {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}, first=True)
    _add(worker, "env", "name", {"name": "HOME", "value": WORK_DIR})
    _fill(worker, securityContext=_restricted(), resources={})
    given = worker["resources"]
    # Without a limit the worker would take all cores of its node for its own; what a template gives it, it is told there, too.
    cores = [] if any("cpu" in (given.get(part) or {}) for part in ("requests", "limits")) else [cpu_millis(pool)]
    _add_resources(worker["resources"], pool)
    if worker.get("command"):
        return  # who starts it himself knows where it answers, too
    start = [f"{AGENT_DIR}/run"] if brought else ["rexec"]
    worker["command"] = [*start, "worker"]
    worker["args"] = [
        *_arguments(pool, server),
        *(f"--resource=cpu={millis}" for millis in cores),
        *(worker.get("args") or []),
    ]
    _add(worker, "ports", "name", {"name": "http", "containerPort": HTTP_PORT})
    _fill(
        worker,
        # A loop that is stuck for two minutes will not come back; the pod is replaced then.
        livenessProbe={"httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 20, "failureThreshold": 6},
        readinessProbe={"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 10},
    )


def _arguments(pool: PoolSettings, server: str) -> list[str]:
    """Of `rexec worker`."""
    arguments = [
        f"--server={server}",
        "--name=$(REXEC_WORKER_NAME)",
        f"--slots={pool.slots}",
        f"--work-dir={WORK_DIR}/rexec",
        f"--cache-max-bytes={max(1, pool.disk_bytes // 2)}",
        f"--drain-grace-seconds={pool.drain_seconds:g}",
        f"--metrics-listen=[$(REXEC_POD_IP)]:{HTTP_PORT}",
    ]
    for name, values in sorted(pool.properties.items()):
        arguments += [f"--property={_literal(f'{name}={value}')}" for value in values]
    arguments += [f"--environment={_literal(f'{name}={value}')}" for name, value in sorted(pool.environment.items())]
    arguments += [f"--instance-name={_literal(name)}" for name in pool.instance_names]
    return arguments


def _literal(text: str) -> str:
    """Kubernetes replaces $(NAME) in arguments, unless the dollar is doubled."""
    return text.replace("$(", "$$(")


def _agent(pool: PoolSettings) -> dict[str, Any]:
    """What copies the agent to where the user's image finds it."""
    small = {"cpu": "100m", "memory": str(128 * _MIB)}
    return {
        "name": "rexec-agent",
        "image": pool.image,
        "command": ["rexec", "copy-agent", AGENT_DIR],
        "volumeMounts": [{"name": "rexec-agent", "mountPath": AGENT_DIR}],
        "securityContext": _restricted(),
        "resources": {"requests": small, "limits": {"memory": small["memory"]}},
    }


def _add_resources(resources: dict[str, Any], pool: PoolSettings) -> None:
    """Memory is asked for in full: a pod beyond what it asked for is the first to be killed when its node runs short. Cores are
    not limited, because a quota would halt an action in the middle of a time slice."""
    memory = str(memory_bytes(pool))
    disk = str(pool.disk_bytes)
    requests = resources.get("requests") or {}
    limits = resources.get("limits") or {}
    # A request above a limit of the template's would be refused, so what it limits it also asks for.
    for name, amount in (("cpu", f"{cpu_millis(pool)}m"), ("memory", memory), ("ephemeral-storage", disk)):
        requests.setdefault(name, limits.get(name, amount))
    limits.setdefault("memory", requests["memory"])
    resources["requests"], resources["limits"] = requests, limits


def cpu_millis(pool: PoolSettings) -> int:
    """Thousandths of cores that a pod of the pool asks for."""
    return math.ceil((pool.cpu or pool.slots) * 1000)


def memory_bytes(pool: PoolSettings) -> int:
    """What a pod of the pool asks for."""
    return pool.memory_bytes or pool.slots * (2048 * _MIB) + 512 * _MIB


def _restricted() -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _fill(table: dict[str, Any], **defaults: Any) -> None:
    for name, value in defaults.items():
        if table.get(name) is None:
            table[name] = value


def _add(table: dict[str, Any], name: str, key: str, item: dict[str, Any], *, first: bool = False) -> None:
    """Add to a list of the table, unless the template has one of the same `key` there. `first`: others refer to it, and
    Kubernetes replaces $(NAME) only by what stands before."""
    items = list(table.get(name) or [])
    if all(other.get(key) != item[key] for other in items):
        items.insert(0 if first else len(items), item)
    table[name] = items
