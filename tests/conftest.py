"""What holds for all tests: gRPC is set up as the commands set it up (rexec/cli.py), and no test sets up the log of another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

# Before gRPC is imported: else what it does around a fork starts its threads anew from whichever thread forks, and a thread
# that has given up its rights hands its restrictions to them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that runs in the test's process sets up the log for the whole of it, and what has logged once would keep writing
    to the standard error of that test."""
    before, configure = structlog.get_config(), structlog.configure

    def for_this_test(**settings: Any) -> None:
        configure(**{**settings, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", for_this_test)
    yield
    configure(**before)
