"""The world that the service tests live in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.scheduler.world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World() as world:
        yield world
