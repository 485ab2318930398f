"""Fixtures for the tests that drive real clients against real processes."""

from collections.abc import Iterator

import pytest

from integration.server import Server, running_server


@pytest.fixture(scope="module")
def rexec_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`rexec serve` with two slots and an empty store, shared by the tests of a module."""
    with running_server(tmp_path_factory.mktemp("server"), slots=2) as server:
        yield server
