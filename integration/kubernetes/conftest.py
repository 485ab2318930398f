"""The cluster, one for all tests, and a namespace for each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from integration.kubernetes.cluster import Cluster, running_cluster
from integration.kubernetes.faults import FaultProxy, fault_proxy
from integration.kubernetes.namespace import Namespace, own_namespace
from integration.kubernetes.nodes import Nodes, running_nodes


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
async def namespace(cluster: Cluster) -> AsyncIterator[Namespace]:
    async with own_namespace(cluster.kubeconfig) as made:
        yield made


@pytest.fixture
def proxied(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[FaultProxy, Path]]:
    """A proxy before the API server, and the kubeconfig of those who come through it."""
    with fault_proxy(cluster.kubeconfig, tmp_path) as (proxy, kubeconfig):
        yield proxy, kubeconfig


@pytest.fixture(scope="session")
def nodes(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Two nodes that pods of ours are bound to."""
    with running_nodes(cluster.kubeconfig, tmp_path_factory.mktemp("nodes")) as running:
        yield running
