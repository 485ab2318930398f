"""What waits for a worker is bounded, ordered and ends with the reason."""

from __future__ import annotations

import pytest

from cas.errors import ResourceExhausted, Unavailable
from rexec.scheduler import letters, outbox
from rexec.scheduler.outbox import Outbox


async def test_messages_come_out_in_order_and_then_the_end() -> None:
    box = Outbox()
    sent = [letters.acknowledged(f"lease-{number}", 1) for number in range(3)]
    for message in sent:
        box.put(message)
    box.close()
    box.put(letters.acknowledged("too late", 1))
    assert [message async for message in box.messages()] == sent


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
