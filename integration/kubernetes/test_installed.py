"""What deploy/kubernetes installs, at work: actions and a Bazel build on pods that come and go."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from integration.bazel import execution_flags, running_bazel
from integration.conformance.actions import run, stdout_of
from integration.conformance.client import connected
from integration.conformance.options import Options
from integration.kubernetes.cluster import Cluster
from integration.kubernetes.installed import installation
from integration.kubernetes.namespace import Namespace, until
from integration.workspace import lay_out_workspace
from tests.kustomized import KUBERNETES, kubectl

BASE, SMALL = KUBERNETES / "base", KUBERNETES / "overlays" / "small"


@pytest.mark.parametrize(
    ("directory", "component", "account", "owner"),
    [
        (SMALL, "server", "rexec", "Deployment rexec"),
        (BASE, "frontend", "rexec-autoscaler", "Deployment rexec-autoscaler"),
    ],
    ids=["small", "base"],
)
async def test_what_was_applied_runs_actions_on_pods_that_come_and_go(
    directory: Path,
    component: str,
    account: str,
    owner: str,
    cluster: Cluster,
    namespace: Namespace,
    tmp_path: Path,
) -> None:
    async with installation(directory, cluster, namespace, tmp_path, account) as installed:
        address = await installed.address(component)
        async with connected(Options(address)) as nobody:
            with pytest.raises(Exception, match=r"UNAUTHENTICATED|PERMISSION_DENIED|not allowed|credentials"):
                await run(nobody, "true")
        async with connected(Options(address, token=installed.client_token)) as client:
            result = await asyncio.wait_for(run(client, "echo made in a pod"), 120)
            assert await stdout_of(client, result) == b"made in a pod\n"
            workers = {pod["metadata"]["name"]: pod for pod in await installed.workers()}
            assert result.execution_metadata.worker in workers
            made = workers[result.execution_metadata.worker]
            assert owner == "{kind} {name}".format_map(made["metadata"]["ownerReferences"][0])
            said = kubectl(
                *("drain", made["spec"]["nodeName"], "--dry-run=client"),
                *("--ignore-daemonsets", "--delete-emptydir-data"),
                kubeconfig=cluster.kubeconfig,
            )
            assert f"/{made['metadata']['name']} " in said
            assert made["spec"]["serviceAccountName"] == "rexec-worker"
            assert made["spec"]["automountServiceAccountToken"] is False

            async def is_empty() -> bool:
                return not await installed.workers()

            await until(is_empty, "the pods of workers to go")


async def test_bazel_builds_with_the_small_installation(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    async with installation(SMALL, cluster, namespace, tmp_path, "rexec") as installed:
        address = await installed.address("server")
        workspace = lay_out_workspace("cpp", tmp_path / "workspace")
        flags = (
            *execution_flags(address),
            f"--remote_header=authorization=Bearer {installed.client_token}",
            "--jobs=8",
        )
        with running_bazel(workspace, tmp_path / "bazel", flags) as bazel:
            outcome = (await asyncio.to_thread(bazel.build, "//...")).expect()
        assert outcome.processes.remote > 0
        assert outcome.processes.elsewhere == {}
