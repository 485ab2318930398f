"""The manifests of deploy/kubernetes as a test's cluster can take them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.kustomized import Manifest, kubectl

_OLDER = {
    ("policy/v1", "PodDisruptionBudget"): "policy/v1beta1",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "autoscaling/v2beta2",
}
"""Of what current servers have, what those before 1.21 and 1.23 had under another version, with the same fields as far as we
use them."""


def within(manifests: Iterable[Manifest], namespace: str, served: Iterable[str]) -> list[Manifest]:
    """The same in another namespace, without that object itself; `served` are the API versions of the server."""
    known = set(served)
    found = []
    for manifest in copy.deepcopy(list(manifests)):
        if manifest["kind"] == "Namespace":
            continue
        older = _OLDER.get((manifest["apiVersion"], manifest["kind"]))
        if older is not None and manifest["apiVersion"] not in known:
            manifest["apiVersion"] = older
        manifest["metadata"]["namespace"] = namespace
        for subject in manifest.get("subjects", ()):
            subject["namespace"] = namespace
        found.append(manifest)
    return found


def on_nodes(manifests: Iterable[Manifest], label: str, name: str) -> None:
    """Let all pods, those of workers too, ask for nodes with this label."""
    asks = {"nodeSelector": {label: name}, "tolerations": [{"operator": "Exists"}]}
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            manifest["spec"]["template"]["spec"].update(asks)
        elif "worker.yaml" in manifest.get("data", {}):
            template = yaml.safe_load(manifest["data"]["worker.yaml"])
            template["spec"].update(asks)
            manifest["data"]["worker.yaml"] = json.dumps(template)


def applied(manifests: Iterable[Manifest], kubeconfig: Path, *options: str) -> str:
    """What kubectl says of applying them."""
    return kubectl(
        "apply", "--server-side", *options, "-f", "-", kubeconfig=kubeconfig, given=yaml.safe_dump_all(manifests)
    )


def volumes_for(manifests: Iterable[Manifest], namespace: str) -> list[Manifest]:
    """A volume for each claim: nobody provisions them in a test."""
    claims: list[tuple[str, dict[str, Any]]] = []
    for manifest in manifests:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        if manifest["kind"] == "PersistentVolumeClaim":
            claims.append((name, spec))
        for claim in spec.get("volumeClaimTemplates", ()):
            claims += [
                (f"{claim['metadata']['name']}-{name}-{number}", claim["spec"]) for number in range(spec["replicas"])
            ]
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{namespace}-{name}"},
            "spec": {
                "capacity": claim["resources"]["requests"],
                "accessModes": claim["accessModes"],
                "hostPath": {"path": "/nonexistent"},
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace, "name": name},
            },
        }
        for name, claim in claims
    ]
