"""The pod of a worker: what is filled in, and what a template has the last word on."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from rexec.autoscale.kubernetes_messages import OwnerReference
from rexec.autoscale.kubernetes_pod import Origin, pod_manifest, selector
from rexec.autoscale.kubernetes_template import TemplateUnusable, checked
from rexec.autoscale.settings import PoolSettings

ORIGIN = Origin(installation="ci", server="grpc://frontend:8980")
POOL = PoolSettings(name="cpu", image="example.com/rexec:1", slots=2, drain_seconds=90.5, disk_bytes=10 << 30)


def template(**spec: Any) -> dict[str, Any]:
    return checked({"spec": spec}, "pod.yaml")


def worker_of(manifest: dict[str, Any]) -> dict[str, Any]:
    return next(container for container in manifest["spec"]["containers"] if container["name"] == "worker")


def test_a_pool_that_says_little_gets_a_pod_with_restricted_rights() -> None:
    restricted = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert pod_manifest(POOL, "cpu-7f3a", "", ORIGIN) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "cpu-7f3a",
            "labels": {
                "app.kubernetes.io/name": "rexec",
                "app.kubernetes.io/component": "worker",
                "app.kubernetes.io/managed-by": "rexec",
                "rexec.dev/installation": "ci",
                "rexec.dev/pool": "cpu",
            },
            "annotations": {
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                "karpenter.sh/do-not-disrupt": "true",
                "kubectl.kubernetes.io/default-container": "worker",
            },
        },
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 121,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumes": [{"name": "rexec-work", "emptyDir": {"sizeLimit": "10737418240"}}],
            "containers": [
                {
                    "name": "worker",
                    "image": "example.com/rexec:1",
                    "command": ["rexec", "worker"],
                    "args": [
                        "--server=grpc://frontend:8980",
                        "--name=$(REXEC_WORKER_NAME)",
                        "--slots=2",
                        "--work-dir=/work/rexec",
                        "--cache-max-bytes=5368709120",
                        "--drain-grace-seconds=90.5",
                        "--metrics-listen=[$(REXEC_POD_IP)]:8982",
                        "--resource=cpu=2000",
                    ],
                    "env": [
                        {"name": "REXEC_WORKER_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "REXEC_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "HOME", "value": "/work"},
                    ],
                    "volumeMounts": [
                        {"name": "rexec-work", "mountPath": "/work"},
                        {"name": "rexec-work", "mountPath": "/tmp", "subPath": "tmp"},
                    ],
                    "ports": [{"name": "http", "containerPort": 8982}],
                    "securityContext": restricted,
                    "resources": {
                        "requests": {"cpu": "2000m", "memory": "4831838208", "ephemeral-storage": "10737418240"},
                        "limits": {"memory": "4831838208"},
                    },
                    "livenessProbe": {
                        "httpGet": {"path": "/healthz", "port": "http"}, "periodSeconds": 20, "failureThreshold": 6
                    },
                    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}, "periodSeconds": 10},
                }
            ],
        },
    }  # fmt: skip


def test_properties_variables_and_instances_are_told_as_they_are_whatever_stands_in_them() -> None:
    pool = PoolSettings(
        name="cpu",
        image="i",
        properties={"b": ["$(HOME)", "x=y"], "a": ["1 2"]},
        instance_names=("main", "$(x)"),
        environment={"PATH": "/usr/local/cargo/bin:/bin", "A": "$(HOME)"},
    )
    arguments = worker_of(pod_manifest(pool, "cpu-1", "", ORIGIN))["args"]
    assert arguments[-8:-1] == [
        "--property=a=1 2",
        "--property=b=$$(HOME)",
        "--property=b=x=y",
        "--environment=A=$$(HOME)",
        "--environment=PATH=/usr/local/cargo/bin:/bin",
        "--instance-name=main",
        "--instance-name=$$(x)",
    ]


def test_an_image_of_the_users_gets_the_agent_brought_along() -> None:
    pool = PoolSettings(name="any", image="example.com/rexec:1", container_images=("*",))
    manifest = pod_manifest(pool, "any-1", "docker://example.com/gcc:13", ORIGIN)
    (init,) = manifest["spec"]["initContainers"]
    assert (init["image"], init["command"]) == ("example.com/rexec:1", ["rexec", "copy-agent", "/rexec/agent"])
    assert init["volumeMounts"] == [{"name": "rexec-agent", "mountPath": "/rexec/agent"}]
    worker = worker_of(manifest)
    assert (worker["image"], worker["command"]) == ("example.com/gcc:13", ["/rexec/agent/run", "worker"])
    assert {"name": "rexec-agent", "mountPath": "/rexec/agent", "readOnly": True} in worker["volumeMounts"]
    assert {"name": "rexec-agent", "emptyDir": {}} in manifest["spec"]["volumes"]
    assert manifest["metadata"]["annotations"]["rexec.dev/container-image"] == "docker://example.com/gcc:13"


def test_what_a_template_says_stands_and_the_rest_is_filled_in() -> None:
    found = checked(
        {
            "metadata": {"labels": {"team": "a", "rexec.dev/pool": "theirs"}, "annotations": {"note": "n"}},
            "spec": {
                "nodeSelector": {"disk": "fast"},
                "terminationGracePeriodSeconds": 5,
                "securityContext": {"runAsUser": 7},
                "volumes": [{"name": "rexec-work", "hostPath": {"path": "/mnt/ssd"}}, {"name": "ca", "secret": {}}],
                "containers": [
                    {"name": "sidecar", "image": "s"},
                    {
                        "name": "worker",
                        "image": "example.com/mine",
                        "args": ["--tls-ca=/ca/ca.crt"],
                        "env": [{"name": "HOME", "value": "/root"}],
                        "volumeMounts": [{"name": "ca", "mountPath": "/ca"}],
                        "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": "1"}},
                        "securityContext": {"readOnlyRootFilesystem": False},
                    },
                ],
            },
        },
        "pod.yaml",
    )
    before = copy.deepcopy(found)
    manifest = pod_manifest(POOL, "cpu-1", "", ORIGIN, found)
    assert found == before
    spec, worker = manifest["spec"], worker_of(manifest)
    assert spec["nodeSelector"] == {"disk": "fast"}
    assert spec["terminationGracePeriodSeconds"] == 5
    assert spec["securityContext"] == {"runAsUser": 7}
    assert spec["volumes"] == before["spec"]["volumes"]
    assert spec["containers"][0] == {"name": "sidecar", "image": "s"}
    assert worker["image"] == "example.com/mine"
    assert worker["command"] == ["rexec", "worker"]
    assert worker["args"][0] == "--server=grpc://frontend:8980"
    assert worker["args"][-1] == "--tls-ca=/ca/ca.crt"
    assert [variable["name"] for variable in worker["env"]] == ["REXEC_WORKER_NAME", "REXEC_POD_IP", "HOME"]
    assert worker["env"][-1]["value"] == "/root"
    assert worker["securityContext"] == {"readOnlyRootFilesystem": False}
    assert worker["resources"]["requests"]["memory"] == worker["resources"]["limits"]["memory"] == "1Gi"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "1"
    labels = manifest["metadata"]["labels"]
    assert (labels["team"], labels["rexec.dev/pool"]) == ("a", "cpu")
    assert manifest["metadata"]["annotations"]["note"] == "n"


def test_a_container_with_a_command_of_its_own_keeps_it_and_learns_its_name() -> None:
    container = {"name": "mine", "image": "i", "command": ["/start"], "args": ["--x"]}
    manifest = pod_manifest(POOL, "cpu-1", "", ORIGIN, template(containers=[container]))
    (mine,) = manifest["spec"]["containers"]
    assert (mine["command"], mine["args"]) == (["/start"], ["--x"])
    assert "livenessProbe" not in mine
    assert mine["env"][0]["name"] == "REXEC_WORKER_NAME"
    assert manifest["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"] == "mine"


def test_an_owner_takes_its_pods_along() -> None:
    owner = OwnerReference(api_version="apps/v1", kind="Deployment", name="autoscaler", uid="u-1")
    origin = Origin(installation="ci", server="grpc://f:1", owner=owner)
    assert pod_manifest(POOL, "cpu-1", "", origin)["metadata"]["ownerReferences"] == [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": "autoscaler",
            "uid": "u-1",
            "controller": True,
            "blockOwnerDeletion": False,
        }
    ]


@pytest.mark.parametrize("kind", ["StatefulSet", "ReplicaSet", "DaemonSet", "Job"])
def test_an_owner_that_disowns_pods_it_has_not_made_is_no_controller(kind: str) -> None:
    owner = OwnerReference(api_version="apps/v1", kind=kind, name="rexec", uid="u-1")
    origin = Origin(installation="ci", server="grpc://f:1", owner=owner)
    (reference,) = pod_manifest(POOL, "cpu-1", "", origin)["metadata"]["ownerReferences"]
    assert (reference["uid"], reference["controller"]) == ("u-1", False)


def test_pods_are_selected_by_what_they_are_labelled_with() -> None:
    labels = pod_manifest(POOL, "cpu-1", "", ORIGIN)["metadata"]["labels"]
    for part in selector("ci").split(","):
        name, _, value = part.partition("=")
        assert labels[name] == value


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (None, "pod.yaml: the file is None, expected a mapping"),
        ([], "pod.yaml: the file is [], expected a mapping"),
        ({"kind": "Deployment"}, "pod.yaml: kind is 'Deployment', expected a PodTemplateSpec: metadata and spec"),
        ({"containers": []}, "pod.yaml: has 'containers', expected metadata and spec only"),
        ({"spec": {"restartPolicy": "Always"}}, "spec.restartPolicy is 'Always', expected Never or nothing"),
        ({"spec": {"containers": {}}}, None),
        ({"spec": {"containers": {"name": "a"}}}, "spec.containers is {'name': 'a'}, expected a list"),
        ({"spec": {"containers": [{"image": "i"}]}}, "spec.containers[0] has no name"),
        ({"spec": {"initContainers": ["x"]}}, "spec.initContainers[0] is 'x', expected a mapping"),
        ({"spec": {"containers": [{"name": "w", "env": ["A=1"]}]}}, "spec.containers[0].env[0] is 'A=1', expected a mapping"),
        ({"spec": {"containers": [{"name": "w", "args": [1]}]}}, "spec.containers[0].args has 1, expected texts (in quotes)"),
        ({"spec": {"containers": [{"name": "w", "resources": {"limits": "1"}}]}}, "resources.limits is '1', expected a mapping"),
        ({"metadata": {"labels": {"a": 1}}}, "metadata.labels.a is 1, expected a text (in quotes)"),
        ({"metadata": "x"}, "metadata is 'x', expected a mapping"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_one_is_refused_with_the_place(found: Any, complaint: str | None) -> None:
    if complaint is None:
        assert checked(found, "pod.yaml")["spec"] == found["spec"]
        return
    with pytest.raises(TemplateUnusable) as refusal:
        checked(found, "pod.yaml")
    assert complaint in str(refusal.value)
