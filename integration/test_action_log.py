"""The rule by which a chaos round is judged, on logs made up for it."""

from pathlib import Path

import pytest

from integration.action_log import REPORT_SECONDS, Run, longest_gap, needless, read
from integration.installation import Death, Role

FIRST, SECOND = 11, 12
"""Pids of workers."""


def killed(pid: int, at: float, role: Role = Role.WORKER, ready_at: float = 0.0) -> Death:
    return Death(role.value, role, pid, at, ready_at or at)


def twice(ended_at: float | None) -> list[Run]:
    """An action that began at 10 on the first worker and again at 30 on the second."""
    return [Run("a", FIRST, 10.0, ended_at), Run("a", SECOND, 30.0, 31.0)]


def test_the_log_is_read_in_the_order_of_the_starts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("start a 11 1.5\nstart b 11 1.0\nend a 11 2.0\n")
    assert read(log) == [Run("b", 11, 1.0), Run("a", 11, 1.5, 2.0)]


def test_a_line_that_is_nobodys_is_an_error(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("begin a 11 1.5\n")
    with pytest.raises(ValueError, match="begin a 11"):
        read(log)


def test_one_run_each_is_fine() -> None:
    assert needless([Run("a", FIRST, 1.0, 2.0), Run("b", FIRST, 1.0, 2.0)], []) == []


def test_a_run_that_was_an_orphan_from_the_start_is_that_of_the_worker_that_died_just_before() -> None:
    runs = [Run("a", 1, 10.0, 11.0), Run("a", SECOND, 30.0, 31.0)]
    assert needless(runs, [killed(FIRST, at=9.5)]) == []
    assert needless(runs, [killed(FIRST, at=2.0)]) != []
    assert needless(runs, [killed(FIRST, at=10.5)]) != []


def test_a_second_run_is_needless_while_the_first_worker_lives() -> None:
    (fault,) = needless(twice(ended_at=11.0), [])
    assert "the first worker lived" in fault


def test_a_second_run_is_needless_if_the_first_worker_died_only_after_it_began() -> None:
    assert needless(twice(ended_at=11.0), [killed(FIRST, at=40.0)]) != []


def test_a_run_that_died_with_its_worker_is_had_again() -> None:
    assert needless(twice(ended_at=None), [killed(FIRST, at=20.0)]) == []


def test_an_action_that_outlived_its_worker_is_had_again() -> None:
    assert needless(twice(ended_at=21.0), [killed(FIRST, at=20.0)]) == []


def test_a_result_may_be_lost_with_its_worker_right_after_the_end() -> None:
    assert needless(twice(ended_at=20.0), [killed(FIRST, at=20.0 + REPORT_SECONDS / 2)]) == []


def test_a_result_that_had_time_to_be_reported_must_not_be_lost() -> None:
    (fault,) = needless(twice(ended_at=11.0), [killed(FIRST, at=20.0)])
    assert "9.0 s to report" in fault


def test_time_in_which_the_scheduler_was_down_is_no_time_to_report() -> None:
    down = killed(1, at=11.5, role=Role.SCHEDULER, ready_at=18.5)
    assert needless(twice(ended_at=11.0), [down, killed(FIRST, at=20.0)]) == []


def test_the_longest_gap_is_that_around_a_moment() -> None:
    runs = [Run(str(start), FIRST, start) for start in (1.0, 5.0, 6.0, 9.0, 9.5)]
    assert longest_gap(runs, begin=6.5, end=7.0) == 3.0
    assert longest_gap(runs, begin=9.2, end=9.2) == 0.5
