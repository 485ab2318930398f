"""The limit of open files."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rexec.descriptors import WANTED, max_uploads

_SHOWN = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from rexec.descriptors import raised
print(raised(), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(("soft", "hard", "limit"), [(256, 1024, 1024), (1024, 1024, 1024), (512, 4096, 4096)])
def test_the_limit_is_raised_as_far_as_the_process_may(soft: int, hard: int, limit: int) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _SHOWN, str(soft), str(hard)], capture_output=True, text=True, check=True, timeout=60
    )
    assert shown.stdout.split() == [str(limit), str(limit)]


def test_uploads_leave_most_descriptors_to_others() -> None:
    assert max_uploads(1024) == 256
    assert max_uploads(WANTED) == 10_000
    assert max_uploads(3) == 1
