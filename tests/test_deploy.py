"""deploy/kubernetes: every object is one of the API's, what they say of each other is so, and rexec takes what it is told."""

from __future__ import annotations

import base64
import copy
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from cryptography import x509

from rexec.autoscale.settings import PoolKind
from rexec.cli import main
from rexec.config import load
from tests.kubernetes_installation import Installation, objects, selects, worker_pods
from tests.kubernetes_schema import problems
from tests.kustomized import KUBERNETES, KUSTOMIZATIONS, Manifest, secrets

HTTP_PORT = 8982
_ADDRESS = re.compile(r"(grpcs?)://([a-z0-9.-]+):(\d+)")
_PATH = re.compile(r"/(?:etc|var/lib)/[a-z0-9/._-]+")


@pytest.fixture(scope="session")
def made_secrets(tmp_path_factory: pytest.TempPathFactory) -> list[Manifest]:
    return secrets(tmp_path_factory.mktemp("secrets"))


@pytest.fixture(params=KUSTOMIZATIONS, ids=lambda directory: directory.name)
def installation(request: pytest.FixtureRequest, made_secrets: list[Manifest]) -> Installation:
    return Installation(request.param, made_secrets)


def test_every_object_is_one_of_the_api(installation: Installation) -> None:
    found = [problem for made in (*installation.manifests, *worker_pods(installation)) for problem in problems(made)]
    assert found == []


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("spec", "replica"), 1, "Deployment.spec.replica is not a field of V1DeploymentSpec"),
        (("spec", "replicas"), "2", "Deployment.spec.replicas is '2', expected int"),
        (("spec", "min_ready_seconds"), 2, "Deployment.spec.min_ready_seconds is not a field of V1DeploymentSpec"),
        (("spec", "template", "spec", "containers"), None, "spec.containers is None, expected a list"),
        (("spec", "template", "spec", "volumes"), [{}], "volumes[0].name is missing"),
        (("kind",), "Deploymint", "apps/v1 Deploymint is not known"),
    ],
)
def test_what_is_not_of_the_api_is_found(path: tuple[str, ...], value: object, complaint: str) -> None:
    (made,) = [
        copy.deepcopy(made) for made in objects(KUSTOMIZATIONS[0]) if made["metadata"]["name"] == "rexec-frontend"
        and made["kind"] == "Deployment"
    ]  # fmt: skip
    assert problems(made) == []
    place = made
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (problem,) = problems(made)
    assert problem.endswith(complaint)


def test_everything_has_a_name_of_its_own_and_is_in_the_namespace(installation: Installation) -> None:
    names = [(made["kind"], made["metadata"]["name"]) for made in installation.manifests]
    assert len(set(names)) == len(names)
    for made in installation.manifests:
        if made["kind"] not in ("Namespace", "Secret"):
            assert made["metadata"]["namespace"] == "rexec", made["metadata"]["name"]


def test_every_pod_passes_the_restricted_standard(installation: Installation) -> None:
    (namespace,) = installation.of("Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    specs = [template["spec"] for template in installation.pods().values()]
    specs += [pod["spec"] for pod in worker_pods(installation)]
    for spec in specs:
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert context["readOnlyRootFilesystem"] is True
            assert not any("hostPort" in port for port in container.get("ports", ()))


def test_every_pod_has_probes_and_says_what_it_needs(installation: Installation) -> None:
    specs = {name: template["spec"] for name, template in installation.pods().items()}
    specs |= {pod["metadata"]["name"]: pod["spec"] for pod in worker_pods(installation)}
    for name, spec in specs.items():
        (container,) = spec["containers"]
        assert set(container["resources"]["requests"]) >= {"cpu", "memory"}, name
        assert "memory" in container["resources"]["limits"], name
        assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}, name
        readiness = container["readinessProbe"]["httpGet"]
        assert readiness["path"] in ("/readyz", "/healthz"), name
        assert readiness["port"] == "http", name
        assert {"name": "http", "containerPort": HTTP_PORT} in container["ports"], name
        assert spec["terminationGracePeriodSeconds"] >= 30, name


def test_images_are_those_that_are_built(installation: Installation) -> None:
    targets = re.findall(r"--target (\S+)\s+-t (\S+) \.", (KUBERNETES.parent / "docker" / "Dockerfile").read_text())
    built = {tag for _, tag in targets}
    used = {
        container["image"] for template in installation.pods().values() for container in template["spec"]["containers"]
    }
    for pod in worker_pods(installation):
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            used.add(container["image"])
    assert used - {"registry.example.org/toolchains/gcc:14"} == {"rexec", "rexec-worker"}
    assert used - {"registry.example.org/toolchains/gcc:14"} <= built


def test_only_the_autoscaler_has_a_token_for_the_api_server(installation: Installation) -> None:
    accounts = {made["metadata"]["name"]: made for made in installation.of("ServiceAccount")}
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    (binding,) = installation.of("RoleBinding")
    (subject,) = binding["subjects"]
    assert subject["namespace"] == "rexec"
    installation.named("Role", binding["roleRef"]["name"])
    with_token = {
        template["spec"]["serviceAccountName"]
        for template in installation.pods().values()
        if template["spec"]["automountServiceAccountToken"]
    }
    assert with_token == {subject["name"]}
    for pod in worker_pods(installation):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["serviceAccountName"] in set(accounts) - with_token


def test_no_right_is_for_anything(installation: Installation) -> None:
    for role in installation.of("Role"):
        for rule in role["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])
            assert not {"secrets", "pods/exec"} & set(rule["resources"])


def test_what_selects_pods_selects_some(installation: Installation) -> None:
    labels = [template["metadata"]["labels"] for template in installation.pods().values()]
    labels += [pod["metadata"]["labels"] for pod in worker_pods(installation)]
    for made in installation.manifests:
        for selector in _selectors(made):
            assert any(selects(selector, found) for found in labels), (made["metadata"]["name"], selector)
    for made in installation.of("Deployment", "StatefulSet"):
        assert made["spec"]["selector"]["matchLabels"] == made["spec"]["template"]["metadata"]["labels"]


def _selectors(manifest: Manifest) -> Iterator[dict[str, Any]]:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Service":
        yield {"matchLabels": spec["selector"]}
    elif manifest["kind"] == "PodDisruptionBudget":
        yield spec["selector"]
    elif manifest["kind"] == "NetworkPolicy":
        yield spec["podSelector"]
        for rule in (*spec.get("ingress", ()), *spec.get("egress", ())):
            for peer in (*rule.get("from", ()), *rule.get("to", ())):
                if "podSelector" in peer:
                    yield peer["podSelector"]


def test_ports_that_are_named_are_there(installation: Installation) -> None:
    for service in installation.of("Service"):
        for template in installation.pods().values():
            if not selects({"matchLabels": service["spec"]["selector"]}, template["metadata"]["labels"]):
                continue
            ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
            for port in service["spec"]["ports"]:
                assert ports[port["targetPort"]] == port["port"]
    for made in installation.of("StatefulSet"):
        installation.named("Service", made["spec"]["serviceName"])


def test_budgets_let_nodes_be_drained(installation: Installation) -> None:
    for made in installation.of("Deployment", "StatefulSet"):
        if made["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"] == "autoscaler":
            continue
        budget = installation.named("PodDisruptionBudget", made["metadata"]["name"])
        assert budget["spec"]["maxUnavailable"] == 1
        assert budget["spec"]["selector"] == made["spec"]["selector"]


def test_what_an_autoscaler_of_the_cluster_scales_has_no_number(installation: Installation) -> None:
    for scaler in installation.of("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        scaled = installation.named(target["kind"], target["name"])
        assert "replicas" not in scaled["spec"]
        assert scaler["spec"]["minReplicas"] >= 2


def test_every_command_is_one_of_ours(installation: Installation, tmp_path: Path) -> None:
    for name, template in installation.pods().items():
        (container,) = template["spec"]["containers"]
        words = [*container["command"], *container["args"]]
        _parses(words, installation.mounted(template["spec"]), tmp_path / name)
        variables = {variable["name"] for variable in container.get("env", ())}
        assert set(re.findall(r"\$\((\w+)\)", " ".join(words))) <= variables
    for pod in worker_pods(installation):
        (container,) = pod["spec"]["containers"]
        assert container["command"][0] in ("rexec", "/rexec/agent/run")
        words = ["rexec", *container["command"][1:], *container["args"]]
        _parses(words, installation.mounted(pod["spec"]), tmp_path / "worker")
        for brings in pod["spec"].get("initContainers", ()):
            assert brings["command"][:2] == ["rexec", "copy-agent"]


def _parses(words: list[str], files: dict[str, str | None], folder: Path) -> None:
    """As `rexec` does it; paths are those of the files below `folder`."""
    assert words[0] == "rexec"
    for path, text in files.items():
        if text is not None:
            (folder / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            (folder / path[1:]).write_text(text)
    words = [re.sub(r"(?<==)(?=/etc/)", str(folder), word) for word in words]
    command = main.commands[words[1]]
    context = command.make_context(words[1], list(words[2:]))
    assert isinstance(context, click.Context)
    for value in context.params.values():
        if isinstance(value, str) and value.startswith(str(folder)):
            assert Path(value).is_file(), value


def test_every_configuration_is_taken_and_names_only_what_is_there(installation: Installation, tmp_path: Path) -> None:
    for name, config, text in installation.configurations(tmp_path):
        files = installation.mounted(installation.pods()[name]["spec"])
        for path in _PATH.findall(text):
            known = path in files or any(
                path.startswith(f"{place}/") for place, found in files.items() if found is None
            )
            assert known, f"{name}: {path}"
        if "autoscaler" not in name:
            assert [address.rpartition(":")[0] for address in config.server.listen] == ["0.0.0.0"]
            (container,) = installation.pods()[name]["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert config.server.listen == (f"0.0.0.0:{ports['grpc']}",)
            assert config.auth.tokens.file in files
        assert config.server.metrics_listen == f"0.0.0.0:{HTTP_PORT}"
    worker = installation.named("ConfigMap", "rexec-worker-config")["data"]["worker.toml"]
    (tmp_path / "worker.toml").write_text(worker)
    assert load(tmp_path / "worker.toml").worker.isolation == "landlock"


def test_addresses_are_those_of_services_and_speak_tls_where_those_do(
    installation: Installation, tmp_path: Path, made_secrets: list[Manifest]
) -> None:
    secured = {name: config.server.tls.enabled for name, config, _ in installation.configurations(tmp_path)}
    texts = {name: text for name, _, text in installation.configurations(tmp_path)}
    for name, template in installation.pods().items():
        texts[f"{name} args"] = shlex.join(template["spec"]["containers"][0]["args"])
    certificate = x509.load_pem_x509_certificate(
        base64.b64decode(installation.named("Secret", "rexec-tls")["data"]["tls.crt"])
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    shown = set(names.get_values_for_type(x509.DNSName))
    addresses = {(where, *found) for where, text in texts.items() for found in _ADDRESS.findall(text)}
    assert addresses
    for where, scheme, host, port in addresses:
        pod, _, service = host.rpartition(".")
        selector = installation.named("Service", service)["spec"]
        assert int(port) in [each["port"] for each in selector["ports"]], where
        (behind,) = [
            name
            for name, template in installation.pods().items()
            if selects({"matchLabels": selector["selector"]}, template["metadata"]["labels"])
        ]
        if pod:
            made = installation.named("StatefulSet", behind)
            assert made["spec"]["serviceName"] == service
            assert pod in [f"{behind}-{number}" for number in range(made["spec"]["replicas"])], where
        assert secured[behind] is (scheme == "grpcs"), where
        if scheme == "grpcs":
            assert host in shown, where


def test_workers_reach_what_the_network_policies_let_them_and_nothing_else(installation: Installation) -> None:
    for pod in worker_pods(installation):
        labels = pod["metadata"]["labels"]
        policies = [made for made in installation.of("NetworkPolicy") if selects(made["spec"]["podSelector"], labels)]
        assert {made["metadata"]["name"] for made in policies} == {"rexec-default", "rexec-worker"}
        assert all("ingress" not in made["spec"] for made in policies)
        (worker,) = [made for made in policies if made["metadata"]["name"] == "rexec-worker"]
        (rule,) = worker["spec"]["egress"]
        (peer,) = rule["to"]
        reached = {
            name
            for name, template in installation.pods().items()
            if selects(peer["podSelector"], template["metadata"]["labels"])
        }
        (server,) = [word for word in pod["spec"]["containers"][0]["args"] if word.startswith("--server=")]
        assert server.partition("://")[2] == "rexec:8980"
        service = installation.named("Service", "rexec")["spec"]["selector"]
        assert reached == {
            name
            for name, template in installation.pods().items()
            if selects({"matchLabels": service}, template["metadata"]["labels"])
        }


def test_pools_are_of_pods_and_held_to_a_budget(installation: Installation, tmp_path: Path) -> None:
    (config,) = [config for _, config, _ in installation.configurations(tmp_path) if config.autoscale.pools]
    assert config.autoscale.max_workers > 0
    for pool in config.autoscale.pools:
        assert pool.kind is PoolKind.KUBERNETES
        assert pool.min == 0
        assert pool.max_cost_per_day > 0


def test_the_monitor_finds_the_port_of_everything(tmp_path: Path) -> None:
    service, monitor, policy = yaml.safe_load_all((KUBERNETES / "monitoring" / "metrics.yaml").read_text())
    assert [problem for made in (service, policy) for problem in problems(made)] == []
    assert selects(monitor["spec"]["selector"], service["metadata"]["labels"])
    assert [port["name"] for port in service["spec"]["ports"]] == [monitor["spec"]["endpoints"][0]["port"]]
    for directory in KUSTOMIZATIONS:
        for made in objects(directory):
            if made["kind"] in ("Deployment", "StatefulSet"):
                labels = made["spec"]["template"]["metadata"]["labels"]
                assert selects({"matchLabels": service["spec"]["selector"]}, labels)
                assert selects(policy["spec"]["podSelector"], labels)


def test_every_file_is_used() -> None:
    used: set[Path] = set()
    for kustomization in KUBERNETES.rglob("kustomization.yaml"):
        folder = kustomization.parent
        found = yaml.safe_load(kustomization.read_text())
        used.add(kustomization)
        used |= {folder / name for name in found.get("resources", ())}
        used |= {folder / patch["path"] for patch in found.get("patches", ()) if "path" in patch}
        used |= {folder / name for made in found.get("configMapGenerator", ()) for name in made["files"]}
    files = {
        file
        for file in KUBERNETES.rglob("*")
        if file.is_file() and file.suffix in (".yaml", ".toml") and "examples" not in file.parts
    }
    assert files - used == set()


def test_every_object_in_a_file_is_one_of_the_api() -> None:
    for file in KUBERNETES.rglob("*.yaml"):
        for found in yaml.safe_load_all(file.read_text()):
            if isinstance(found, dict) and found.get("kind", "Component") not in ("Kustomization", "Component"):
                assert problems(found) == [], file
