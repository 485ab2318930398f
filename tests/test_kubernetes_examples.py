"""deploy/kubernetes/examples: every object is one of the API's, rexec takes what it is told, and they fit each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import pytest
import yaml

from rexec.asked_pool import asked_pool
from rexec.cli import main
from rexec.external_metrics import GROUP, VERSION
from rexec.keda import FIGURES, WANTED
from rexec.scheduler.settings import SchedulerSettings
from tests.kubernetes_schema import problems
from tests.kustomized import KUBERNETES, Manifest

EXAMPLES = KUBERNETES / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.yaml"))


def manifests(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text()))


def one(name: str, kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests(name) if manifest["kind"] == kind)
    return found


def containers(name: str) -> Iterator[dict[str, Any]]:
    for manifest in manifests(name):
        if manifest["kind"] == "Deployment":
            yield from manifest["spec"]["template"]["spec"]["containers"]


def properties() -> dict[str, str]:
    """What the workers of the example offer."""
    (worker,) = containers("workers")
    said = [argument.removeprefix("--property=") for argument in worker["args"] if argument.startswith("--property=")]
    return dict(text.split("=", 1) for text in said)


def option(name: str) -> str:
    """Of the command line of the workers."""
    (worker,) = containers("workers")
    (value,) = (argument.partition("=")[2] for argument in worker["args"] if argument.startswith(f"{name}="))
    return str(value)


@pytest.mark.parametrize("name", NAMES)
def test_every_object_is_one_of_the_api(name: str) -> None:
    found = [problem for made in manifests(name) if made["kind"] != "ScaledObject" for problem in problems(made)]
    assert found == []


@pytest.mark.parametrize("name", [name for name in NAMES if name != "hpa"])
def test_rexec_understands_every_command_line(name: str) -> None:
    for container in containers(name):
        program, command = container["command"]
        rest: list[str] = container["args"]
        assert program == "rexec"
        found = main.commands[command]
        context = click.Context(main)
        # Configurations are files of the pod: any file that is here stands for them.
        given = [f"--config={__file__}" if part.startswith("--config=") else part for part in rest]
        found.parse_args(click.Context(found, parent=context), given)


@pytest.mark.parametrize("name", NAMES)
def test_ports_probes_and_volumes_are_there(name: str) -> None:
    for manifest in manifests(name):
        if manifest["kind"] != "Deployment":
            continue
        assert (
            manifest["spec"]["selector"]["matchLabels"].items()
            <= manifest["spec"]["template"]["metadata"]["labels"].items()
        )
        spec = manifest["spec"]["template"]["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            ports = {port["name"] for port in container["ports"]}
            for probe in ("livenessProbe", "readinessProbe"):
                for action in container.get(probe, {}).values():
                    if isinstance(action, dict):
                        assert action["port"] in ports


def test_keda_and_a_pod_autoscaler_ask_about_the_workers_that_there_are() -> None:
    scaled, pods = one("keda-scaledobject", "ScaledObject"), one("hpa", "HorizontalPodAutoscaler")
    (trigger,) = scaled["spec"]["triggers"]
    (metric,) = pods["spec"]["metrics"]
    asked = metric["external"]["metric"]
    assert asked["name"] == WANTED
    assert metric["external"]["target"] == {"type": "AverageValue", "averageValue": "1"}
    pool = asked_pool(trigger["metadata"])
    assert pool == asked_pool(asked["selector"]["matchLabels"])
    assert pool.pairs == properties().items()
    assert pool.slots == int(option("--slots"))
    # Else actions would be refused, and not wait, while there is no worker.
    assert set(properties()) <= set(SchedulerSettings().known_properties)
    for autoscaler in (scaled, pods):
        assert autoscaler["spec"]["scaleTargetRef"]["name"] == one("workers", "Deployment")["metadata"]["name"]
    service = one("keda-scaledobject", "Service")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}"
    assert trigger["metadata"]["scalerAddress"] == f"{host}:{service['spec']['ports'][0]['port']}"


def test_workers_have_the_time_to_end_what_they_run_before_they_are_killed() -> None:
    spec = one("workers", "Deployment")["spec"]
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= float(option("--drain-grace-seconds")) + 15
    assert "replicas" not in spec


def test_the_api_service_names_the_service_and_its_readers_what_is_served() -> None:
    served, service = one("apiservice", "APIService"), one("apiservice", "Service")
    assert (served["spec"]["group"], served["spec"]["version"]) == (GROUP, VERSION)
    assert served["metadata"]["name"] == f"{VERSION}.{GROUP}"
    assert served["spec"]["service"] == {
        "name": service["metadata"]["name"],
        "namespace": service["metadata"]["namespace"],
        "port": service["spec"]["ports"][0]["port"],
    }
    (rule,) = one("apiservice", "ClusterRole")["rules"]
    assert rule["apiGroups"] == [GROUP]
    assert rule["resources"] == list(FIGURES)
