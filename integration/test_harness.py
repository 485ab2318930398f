"""The harness reads Bazel's and the server's own words; a wrong reading would let a local build pass for a remote one."""

import sys
from pathlib import Path

import pytest

from integration.outcome import Processes
from integration.process import Process, is_alive
from integration.server import Counts
from integration.waiting import wait_until


@pytest.mark.parametrize(
    ("line", "remote", "cache_hits", "elsewhere"),
    [
        ("INFO: 148 processes: 52 internal, 96 remote.", 96, 0, {}),
        ("INFO: 148 processes: 95 remote cache hit, 52 internal, 1 local.", 0, 95, {"local": 1}),
        ("INFO: 9 processes: 2 disk cache hit, 7 linux-sandbox.", 0, 0, {"disk cache hit": 2, "linux-sandbox": 7}),
        ("INFO: 1 process: 1 internal.", 0, 0, {}),
        ("INFO: 0 processes.", 0, 0, {}),
    ],
)
def test_what_ran_where_is_read_from_bazels_output(
    line: str, remote: int, cache_hits: int, elsewhere: dict[str, int]
) -> None:
    processes = Processes.parse(f"Loading:\n{line}\nINFO: Build completed successfully, 1 total action\n")
    assert (processes.remote, processes.cache_hits, processes.elsewhere) == (remote, cache_hits, elsewhere)


def test_executions_of_every_result_are_counted_together() -> None:
    counts = Counts.parse(
        "# TYPE rexec_executions_total counter\n"
        'rexec_executions_total{result="ok"} 7\n'
        'rexec_executions_total{result="nonzero"} 2\n'
        'rexec_executions_created{result="ok"} 1.7e9\n'
        "# TYPE rexec_action_cache_lookups_total counter\n"
        'rexec_action_cache_lookups_total{outcome="hit"} 5\n'
        'rexec_action_cache_lookups_total{outcome="miss"} 9\n'
    )
    assert counts.executed == 9
    assert counts.hits == 5


def test_a_process_that_dies_at_its_start_is_reported_with_its_log(tmp_path: Path) -> None:
    process = Process((sys.executable, "-c", "raise SystemExit('no such state directory')"), tmp_path / "log")

    def still_running_is_not_enough() -> bool:
        process.expect_running()
        return False

    with pytest.raises(AssertionError, match="no such state directory"):
        wait_until(still_running_is_not_enough, "the end of the process", 20)
    assert not is_alive(process.pid)
