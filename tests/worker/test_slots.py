"""Slots are given in the order of asking, one or several at a time."""

from __future__ import annotations

import asyncio

import pytest

from rexec.worker.slots import Slots


class Users:
    """Actions that take slots until they are told to give them back."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.running: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, count: int) -> None:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._use(name, count))
        await self.settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.settle()

    async def cancel(self, name: str) -> None:
        self.tasks[name].cancel()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def _use(self, name: str, count: int) -> None:
        async with self.slots.taken(count):
            self.running.append(name)
            try:
                await self._ends[name].wait()
            finally:
                self.running.remove(name)


async def test_an_action_of_several_slots_is_not_overtaken() -> None:
    users = Users(Slots(3))
    await users.ask("small 1", 1)
    await users.ask("small 2", 1)
    await users.ask("large", 3)
    await users.ask("small 3", 1)
    assert users.running == ["small 1", "small 2"]
    await users.end("small 1")
    assert users.running == ["small 2"]
    await users.end("small 2")
    assert users.running == ["large"]
    await users.end("large")
    assert users.running == ["small 3"]
    await users.end("small 3")
    assert users.slots.free == 3


async def test_one_that_is_cancelled_while_it_waits_lets_the_others_pass() -> None:
    users = Users(Slots(2))
    await users.ask("one", 1)
    await users.ask("two", 2)
    await users.ask("three", 1)
    assert users.running == ["one"]
    await users.cancel("two")
    assert users.running == ["one", "three"]
    await users.end("one")
    await users.cancel("three")
    assert users.slots.free == 2


async def test_one_that_is_cancelled_in_the_moment_of_its_turn_gives_it_back() -> None:
    slots = Slots(1)
    users = Users(slots)
    await users.ask("first", 1)
    await users.ask("second", 1)
    slots._give_back(1)  # its turn is set, and before it wakes up
    users.tasks["second"].cancel()
    await users.settle()
    assert (users.running, slots.free) == (["first"], 1)
    slots.free -= 1
    await users.end("first")
    assert slots.free == 1


@pytest.mark.parametrize("count", [0, 3])
async def test_more_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} slots, expected 1 to 2"):
        async with Slots(2).taken(count):
            pass
