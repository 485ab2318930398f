"""What the log is told while there is no stream to the scheduler."""

from __future__ import annotations

from rexec.worker.link import LinkBroken, NotReached, Refused
from rexec.worker.trouble import MAX_REASONS, TOLD_SECONDS, UNREACHED_SECONDS, Trouble

REFUSED = NotReached("127.0.0.1:1: connection refused")


def test_a_server_that_is_away_is_told_of_after_a_second_and_then_once_a_minute() -> None:
    trouble = Trouble()
    told = [now for now in range(200) if trouble.news(REFUSED, float(now))]
    first = UNREACHED_SECONDS
    assert told == [first, first + TOLD_SECONDS, first + 2 * TOLD_SECONDS, first + 3 * TOLD_SECONDS]


def test_a_server_that_is_back_at_once_is_not_told_of() -> None:
    trouble = Trouble()
    for start in (0.0, 100.0):
        assert not trouble.news(REFUSED, start)
        assert not trouble.news(REFUSED, start + UNREACHED_SECONDS / 2)
        trouble.over()


def test_another_reason_is_told_at_once_and_the_same_one_again_after_an_attachment() -> None:
    trouble = Trouble()
    assert "refuses" in trouble.news(Refused("INVALID_ARGUMENT: 5000 slots"), 0.0)
    assert not trouble.news(Refused("INVALID_ARGUMENT: 5000 slots"), 1.0)
    assert "refuses" in trouble.news(Refused("UNAUTHENTICATED: no"), 2.0)
    assert "no stream" in trouble.news(LinkBroken("cut"), 3.0)
    trouble.over()
    assert "no stream" in trouble.news(LinkBroken("cut"), 4.0)


def test_reasons_that_alternate_between_addresses_are_each_told_once_a_minute() -> None:
    trouble = Trouble()
    reasons = [NotReached("127.0.0.1:1: connection refused"), LinkBroken("UNAVAILABLE: 127.0.0.1:2 is not in charge")]
    told: dict[str, list[int]] = {str(reason): [] for reason in reasons}
    for now in range(600):
        for reason in reasons:
            if trouble.news(reason, float(now)):
                told[str(reason)].append(now)
    interval = int(TOLD_SECONDS)
    assert list(told.values()) == [list(range(int(UNREACHED_SECONDS), 600, interval)), list(range(0, 600, interval))]


def test_reasons_without_end_are_told_up_to_a_number_within_the_interval() -> None:
    trouble = Trouble()
    told = [now for now in range(int(2 * TOLD_SECONDS)) if trouble.news(LinkBroken(f"attempt {now}"), float(now))]
    second = int(TOLD_SECONDS)
    assert told == [*range(MAX_REASONS), *range(second, second + MAX_REASONS)]
