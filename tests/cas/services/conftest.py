"""A cache for each test."""

from __future__ import annotations

import pytest

from cas.context import RequestContext

from .cache import Cache


@pytest.fixture
def cache() -> Cache:
    return Cache()


@pytest.fixture
def context() -> RequestContext:
    return RequestContext()
