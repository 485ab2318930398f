"""Options that cannot work are refused with their value."""

from __future__ import annotations

import msgspec
import pytest

from rexec.scheduler.settings import SchedulerSettings


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_timeout_seconds": 0.0}, "max_timeout_seconds is 0.0, expected more than 0"),
        ({"default_timeout_seconds": 10.0, "max_timeout_seconds": 5.0}, "expected at most max_timeout_seconds"),
        ({"grace_seconds": -1.0}, "grace_seconds is -1.0"),
        ({"max_attempts": 0}, "max_attempts is 0, expected 1 or more"),
        ({"retain_seconds": 59.0}, "retain_seconds is 59.0, expected 60 or more"),
        ({"keepalive_seconds": 61.0}, "keepalive_seconds is 61.0, expected at most 60"),
        ({"heartbeat_timeout_seconds": 5.0}, "expected more than heartbeat_seconds"),
        ({"abandon_seconds": float("nan")}, "abandon_seconds is nan"),
        ({"answer_seconds": 0.0}, "answer_seconds is 0.0, expected more than 0"),
        ({"hedge_factor": -1.0}, "hedge_factor is -1.0, expected more than 0"),
        ({"hedge_share": -0.1}, "hedge_share is -0.1, expected 0 or more"),
        ({"quarantine_failures": 0}, "quarantine_failures is 0, expected 1 or more"),
        ({"quarantine_max_seconds": 1.0}, "quarantine_max_seconds is 1.0, expected at least quarantine_seconds"),
    ],
)
def test_a_value_that_cannot_work_is_refused(options: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SchedulerSettings(**options)  # type: ignore[arg-type]


def test_an_option_that_does_not_exist_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.convert({"colour": "red"}, SchedulerSettings)


@pytest.mark.parametrize(
    ("workers", "seconds"), [(1, 5.0), (125, 5.0), (200, 8.0), (1_000, 20.0), (100_000, 20.0)]
)  # fmt: skip
def test_of_more_workers_each_says_less_often_that_it_lives(workers: int, seconds: float) -> None:
    settings = SchedulerSettings(heartbeat_seconds=5, heartbeat_timeout_seconds=20, max_heartbeats_per_second=25)
    assert settings.heartbeat_interval_seconds(workers) == seconds


@pytest.mark.parametrize(("interval_seconds", "seconds"), [(0.0, 20.0), (5.0, 20.0), (8.0, 20.0), (20.0, 40.0)])
def test_who_was_told_to_say_little_may_be_silent_for_longer(interval_seconds: float, seconds: float) -> None:
    settings = SchedulerSettings(heartbeat_seconds=5, heartbeat_timeout_seconds=20)
    assert settings.silence_seconds(interval_seconds) == seconds


def test_an_interval_and_a_timeout_that_were_asked_for_are_kept() -> None:
    settings = SchedulerSettings(heartbeat_seconds=15, heartbeat_timeout_seconds=20)
    assert settings.heartbeat_interval_seconds(1) == 15
    assert settings.silence_seconds(settings.heartbeat_interval_seconds(1)) == 20
