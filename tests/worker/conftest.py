"""Fixtures: a store in memory, and a worker over it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from cas.memory import MemoryStore
from tests.worker.actions import Inputs, Worker, make_context


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest_asyncio.fixture
async def worker(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Worker]:
    context = await make_context(tmp_path / "work", store, stdout_max_bytes=1 << 20)
    yield Worker(context, Inputs(store), tmp_path / "work")
    context.workspace.close()
