"""What waits for a worker is bounded, ordered and ends with the reason."""

from __future__ import annotations

import pytest

from cas.errors import ResourceExhausted, Unavailable
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler import letters, outbox
from rexec.scheduler.outbox import Outbox
from rexec.scheduler.settings import SchedulerSettings
from tests.scheduler.world import parts_of


async def heard(box: Outbox) -> list[worker_pb2.ToWorker]:
    """What a worker takes out of the messages."""
    return [part for message in [message async for message in box.messages()] for part in parts_of(message)]


async def test_messages_come_out_in_order_and_then_the_end() -> None:
    box = Outbox()
    sent = [letters.acknowledged(f"lease-{number}", 1) for number in range(3)]
    for message in sent:
        box.put(letters.acknowledged(message.acknowledged.lease_id, 1))
    box.close()
    box.put(letters.acknowledged("too late", 1))
    assert await heard(box) == sent


async def test_what_waits_travels_together_but_never_with_a_welcome() -> None:
    box = Outbox()
    first = letters.welcome("w", (), (), SchedulerSettings(), 5.0)
    rest = [letters.acknowledged(f"lease-{number}", 1) for number in range(3)]
    for message in (first, *rest):
        box.put(message)
    box.close()
    messages = [message async for message in box.messages()]
    assert [len(message.also) for message in messages] == [0, 2]


async def test_what_travels_together_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_TOGETHER_BYTES", 500)
    box = Outbox()
    sent = [letters.acknowledged("x" * size, 1) for size in (100, 100, 1000, 400, 400)]
    for message in sent:
        box.put(message)
    box.close()
    assert [len(message.also) for message in [message async for message in box.messages()]] == [1, 0, 0, 0]


async def test_a_failure_goes_before_what_was_not_read() -> None:
    box = Outbox()
    box.put(letters.acknowledged("unread", 1))
    box.close(Unavailable("replaced"))
    box.close(Unavailable("a second reason"))
    with pytest.raises(Unavailable, match="replaced"):
        await anext(box.messages())


async def test_a_worker_that_makes_us_answer_and_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_MESSAGES", 50)
    box = Outbox()
    for _ in range(51):
        box.put(letters.acknowledged("again", 1))
    with pytest.raises(ResourceExhausted, match="the worker reads none"):
        await anext(box.messages())
