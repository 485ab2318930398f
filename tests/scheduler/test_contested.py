"""Workers that share a name."""

from __future__ import annotations

import pytest

from cas.errors import AlreadyExists
from rexec.scheduler import events as e
from rexec.scheduler.contested import ContestedNames
from rexec.scheduler.platform import Offer
from rexec.scheduler.task import Worker
from tests.scheduler.rules import Driver


@pytest.fixture
def rules() -> Driver:
    return Driver()


def holder(rules: Driver, name: str = "w1") -> str:
    return rules.queue.fleet.by_name[name].worker_id


def test_a_worker_that_restarted_takes_over_at_once_although_its_old_stream_looks_alive(rules: Driver) -> None:
    rules.attach("w1", session="before")
    rules.attach("w1", session="after")
    assert holder(rules) == "after"


def test_the_one_that_was_replaced_does_not_take_the_name_back_while_its_successor_lives(rules: Driver) -> None:
    rules.attach("w1", session="first")
    rules.attach("w1", session="second")
    name = rules.submit()
    for _ in range(3):
        with pytest.raises(AlreadyExists, match=r"another worker named 'w1' is connected.*\[worker\] name"):
            rules.attach("w1", session="first")
        rules.pass_time(rules.settings.contested_seconds)
    assert holder(rules) == "second"
    assert rules.running_on(name) == "w1"
    assert rules.operation(name).task.losses == []


def test_it_may_come_back_when_its_successor_is_gone(rules: Driver) -> None:
    rules.attach("w1", session="first")
    rules.attach("w1", session="second")
    rules.do(e.WorkerDetached("second"))
    rules.attach("w1", session="first")
    assert holder(rules) == "first"


def test_workers_that_restart_again_and_again_to_get_their_name_are_refused_after_the_second_time(
    rules: Driver,
) -> None:
    for session in ("a1", "b1", "a2"):
        rules.attach("w1", session=session)
    with pytest.raises(AlreadyExists):
        rules.attach("w1", session="b2")
    assert holder(rules) == "a2"
    rules.pass_time(rules.settings.contested_seconds + 1)
    rules.attach("w1", session="b3")
    assert holder(rules) == "b3"


def test_a_worker_that_crashes_often_is_never_refused(rules: Driver) -> None:
    for number in range(10):
        rules.attach("w1", session=f"s{number}")
        rules.do(e.WorkerDetached(f"s{number}"))
    rules.attach("w1", session="last")
    assert holder(rules) == "last"


def test_the_same_session_comes_back_as_often_as_it_likes(rules: Driver) -> None:
    for _ in range(10):
        rules.attach("w1", session="same")
    assert holder(rules) == "same"


def test_names_and_sessions_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rexec.scheduler.contested.MAX_NAMES", 5)
    names = ContestedNames()
    for number in range(50):
        names.take_over("newcomer", Worker(f"s{number}", f"w{number}", 1, Offer()), 60.0, 0.0)
    assert len(names._replaced) == len(names._changes) == 5
