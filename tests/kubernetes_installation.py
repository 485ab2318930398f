"""A kustomization as a whole: what its objects say of each other, and the pods that the autoscaler will make with it."""

from __future__ import annotations

import base64
import copy
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rexec.autoscale.kubernetes_pod import Origin, pod_manifest
from rexec.autoscale.kubernetes_template import checked
from rexec.config import Config, load, parse
from tests.kustomized import Manifest, rendered


@cache
def objects(directory: Path) -> tuple[Manifest, ...]:
    """Of a kustomization; not to be changed."""
    return tuple(rendered(directory))


class Installation:
    """A kustomization with the Secrets that it names."""

    def __init__(self, directory: Path, keys: list[Manifest]) -> None:
        self.manifests = [*copy.deepcopy(objects(directory)), *copy.deepcopy(keys)]

    def of(self, *kinds: str) -> list[Manifest]:
        return [manifest for manifest in self.manifests if manifest["kind"] in kinds]

    def named(self, kind: str, name: str) -> Manifest:
        found = [manifest for manifest in self.of(kind) if manifest["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name}"
        return found[0]

    def pods(self) -> dict[str, Manifest]:
        """The templates, by the name of what makes them."""
        return {made["metadata"]["name"]: made["spec"]["template"] for made in self.of("Deployment", "StatefulSet")}

    def files(self, volume: dict[str, Any]) -> dict[str, str]:
        """What a ConfigMap or Secret has for a volume."""
        if name := volume.get("configMap", {}).get("name"):
            return dict(self.named("ConfigMap", name)["data"])
        data = self.named("Secret", volume["secret"]["secretName"])["data"]
        return {key: base64.b64decode(text).decode() for key, text in data.items()}

    def mounted(self, spec: dict[str, Any]) -> dict[str, str | None]:
        """The files that the container of a pod sees, by path; of a directory that it can write to, None."""
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        for claim in self.of("StatefulSet"):
            if claim["spec"]["template"]["spec"] is spec:
                volumes |= {
                    made["metadata"]["name"]: made for made in claim["spec"].get("volumeClaimTemplates", ())
                }  # fmt: skip
        found: dict[str, str | None] = {}
        (container,) = spec["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        for mount in container["volumeMounts"]:
            volume = volumes[mount["name"]]
            if "configMap" in volume or "secret" in volume:
                assert mount["readOnly"] is True
                found |= {f"{mount['mountPath']}/{key}": text for key, text in self.files(volume).items()}
            else:
                if "persistentVolumeClaim" in volume:
                    self.named("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
                found[mount["mountPath"]] = None
        return found

    def configurations(self, folder: Path) -> Iterator[tuple[str, Config, str]]:
        """Of each role: its name, configuration and the text of that."""
        for name, template in self.pods().items():
            (text,) = [
                text
                for path, text in self.mounted(template["spec"]).items()
                if path.startswith("/etc/rexec/") and path.endswith(".toml") and text is not None
            ]
            file = folder / f"{name}.toml"
            file.write_text(text)
            yield name, load(file), text


def worker_pods(installation: Installation) -> list[Manifest]:
    """The pods that the autoscaler makes of its pools and the template, for each image that has to be brought along, too."""
    found = []
    template = checked(
        yaml.safe_load(installation.named("ConfigMap", "rexec-worker-config")["data"]["worker.yaml"]), ""
    )
    for text in (text for made in installation.of("ConfigMap") for text in made["data"].values()):
        if "[[autoscale.pools]]\nname" not in text:
            continue
        # The example in the comments, too.
        pools = re.sub(r"(?m)^# (?=\[\[|[a-z_]+ = )", "", text)
        autoscale = tomllib.loads(pools)["autoscale"]
        settings = Config().autoscale
        origin = Origin(installation=settings.installation, server=autoscale["server"])
        for pool in parse(pools).autoscale.pools:
            image = "docker://registry.example.org/toolchains/gcc:14" if pool.container_images else ""
            found.append(pod_manifest(pool, f"{pool.name}-1", image, origin, template))
    assert found
    return found


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a LabelSelector takes something with these labels."""
    one_of = selector.get("matchExpressions", ())
    assert all(expression["operator"] == "In" for expression in one_of)
    return set(selector.get("matchLabels", {}).items()) <= set(labels.items()) and all(
        labels.get(expression["key"]) in expression["values"] for expression in one_of
    )
