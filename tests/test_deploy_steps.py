"""What one does to install deploy/kubernetes, as docs/kubernetes.md says it."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

from rexec.auth.authentication import Authentication
from rexec.auth.settings import AuthSettings, TokenSettings
from rexec.config import parse
from tests.kustomized import KUBERNETES, rendered, secrets


def test_secrets_are_made_once_and_tell_servers_hashes_only(tmp_path: Path) -> None:
    first = secrets(tmp_path)
    tokens = tmp_path / "tokens.toml"
    own = tokens.read_text() + '\n[[token]]\nidentity = "me"\nsha256 = "' + "0" * 64 + '"\nrights = ["operate"]\n'
    tokens.write_text(own)
    second = {made["metadata"]["name"]: made["data"] for made in secrets(tmp_path)}
    assert base64.b64decode(second["rexec-tokens"]["tokens.toml"]).decode() == own
    for made in first:
        if made["metadata"]["name"].endswith("-token"):
            assert second[made["metadata"]["name"]] == made["data"]
    (tmp_path / "worker.token").write_text("another")
    secrets(tmp_path)
    known = {table["identity"]: table for table in tomllib.loads(tokens.read_text())["token"]}
    for name, rights in {
        "front": ["front"],
        "autoscaler": ["operate"],
        "worker": ["work"],
        "client": ["execute"],
    }.items():
        token = (tmp_path / f"{name}.token").read_bytes()
        assert known[name] == {"identity": name, "sha256": hashlib.sha256(token).hexdigest(), "rights": rights}
        assert token.decode() not in tokens.read_text()
        assert oct((tmp_path / f"{name}.token").stat().st_mode & 0o777) == "0o600"
    Authentication(AuthSettings(tokens=TokenSettings(file=str(tokens))))


def test_what_the_guide_has_in_a_directory_of_ones_own_is_taken(tmp_path: Path) -> None:
    guide = (KUBERNETES.parent.parent / "docs" / "kubernetes.md").read_text()
    (script,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    shutil.copytree(KUBERNETES, tmp_path / "deploy" / "kubernetes")
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=60)
    manifests = list(rendered(tmp_path / "mine"))
    (server,) = [made for made in manifests if made["kind"] == "Deployment"]
    spec = server["spec"]["template"]["spec"]
    assert [container["image"] for container in spec["containers"]] == ["REGISTRY/rexec:1"]
    (config,) = [made for made in manifests if "rexec.toml" in made.get("data", {})]
    assert {"name": "config", "configMap": {"name": config["metadata"]["name"]}} in spec["volumes"]
    (pool,) = parse(config["data"]["rexec.toml"]).autoscale.pools
    assert pool.image == "REGISTRY/rexec-worker:1"


def test_the_guides_pull_secret_storage_class_and_own_template_reach_what_they_are_for(tmp_path: Path) -> None:
    guide = (KUBERNETES.parent.parent / "docs" / "kubernetes.md").read_text()
    (script,) = re.findall(r"```sh\n(.*?)```", guide, re.DOTALL)
    patches, generator = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    shutil.copytree(KUBERNETES, tmp_path / "deploy" / "kubernetes")
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, check=True, timeout=60)
    template = (KUBERNETES / "workers" / "config" / "worker.yaml").read_text() + "  nodeSelector: {pool: builds}\n"
    (tmp_path / "mine" / "worker.yaml").write_text(template)
    with (tmp_path / "mine" / "kustomization.yaml").open("a") as file:
        file.write(generator + patches)  # the generator's line goes on with the list that ends there
    manifests = list(rendered(tmp_path / "mine"))
    accounts = [made for made in manifests if made["kind"] == "ServiceAccount"]
    assert {account["metadata"]["name"] for account in accounts} == {"rexec", "rexec-worker"}
    assert all(account["imagePullSecrets"] == [{"name": "registry"}] for account in accounts)
    (claim,) = [made for made in manifests if made["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["storageClassName"] == "CLASS"
    (workers,) = [made for made in manifests if made["metadata"]["name"] == "rexec-worker-config"]
    assert workers["data"]["worker.yaml"] == template
    assert "worker.toml" in workers["data"]


def test_the_script_says_what_it_wants() -> None:
    ended = subprocess.run(
        ["bash", str(KUBERNETES / "make-secrets.sh")], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "expected a directory" in ended.stderr
