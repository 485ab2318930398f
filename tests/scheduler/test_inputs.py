"""Checking input roots costs what has changed since the last action."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from cas.digest import Digest
from cas.errors import InputsMissing, MalformedRequest
from rexec.scheduler import inputs
from rexec.scheduler.settings import SchedulerSettings
from tests.scheduler.world import World


async def test_the_same_root_is_asked_for_once(world: World) -> None:
    root = await world.root({"a/b/c": b"c", "d": b"d"})
    await world.inputs.require("main", world.store, root)
    asked = len(world.store.asked)
    await world.inputs.require("main", world.store, root)
    assert len(world.store.asked) == asked


async def test_the_next_root_costs_only_its_changed_directories(world: World) -> None:
    files = {f"lib{number}/part{part}.h": b"%d %d" % (number, part) for number in range(5) for part in range(5)}
    await world.inputs.require("main", world.store, await world.root(files | {"main/main.c": b"one"}))
    changed = await world.root(files | {"main/main.c": b"two"})
    world.store.asked.clear()
    await world.inputs.require("main", world.store, changed)
    (asked,) = world.store.asked
    assert asked == {changed, await world.root({"main.c": b"two"}), Digest.of(b"two")}


async def test_what_was_found_is_believed_for_a_while_only(world: World) -> None:
    root = await world.root({"a": b"a"})
    await world.inputs.require("main", world.store, root)
    world.store.evicted.add(Digest.of(b"a"))
    await world.inputs.require("main", world.store, root)
    world.clock.advance(world.settings.inputs_known_seconds)
    with pytest.raises(InputsMissing) as caught:
        await world.inputs.require("main", world.store, root)
    assert caught.value.digests == (Digest.of(b"a"),)


async def test_a_parent_is_not_believed_for_longer_than_its_parts(world: World) -> None:
    await world.inputs.require("main", world.store, await world.root({"part": b"part"}))
    world.clock.advance(world.settings.inputs_known_seconds - 1)
    whole = await world.root({"dir/part": b"part", "new": b"new"})
    await world.inputs.require("main", world.store, whole)
    world.store.evicted.add(Digest.of(b"part"))
    world.clock.advance(1)
    with pytest.raises(InputsMissing):
        await world.inputs.require("main", world.store, whole)


async def test_one_instance_learns_nothing_from_another(world: World) -> None:
    root = await world.root({"a": b"a"})
    await world.inputs.require("main", world.store, root)
    world.store.evicted.add(root)
    with pytest.raises(InputsMissing):
        await world.inputs.require("", world.store, root)


async def test_a_directory_that_only_our_own_memory_has_is_missing(world: World) -> None:
    root = await world.root({"a": b"a"})
    await world.inputs.require("main", world.store, root)
    world.store.evicted.add(root)
    world.inputs.forget("main")
    with pytest.raises(InputsMissing) as caught:
        await world.inputs.require("main", world.store, root)
    assert caught.value.digests == (root,)


async def test_more_missing_blobs_than_a_message_holds_are_named_in_part(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "MAX_NAMED", 2)
    monkeypatch.setattr(inputs, "SLICE", 3)
    root = await world.root({f"f{number}": b"%d" % number for number in range(10)})
    gone = sorted((Digest.of(b"%d" % number) for number in range(10)), key=lambda digest: digest.hash)
    world.store.evicted.update(gone)
    with pytest.raises(InputsMissing) as caught:
        await world.inputs.require("main", world.store, root)
    assert list(caught.value.digests) == gone[:2]


async def test_too_many_directories_are_refused() -> None:
    async with World(SchedulerSettings(max_input_directories=3)) as world:
        root = await world.root({f"{number}/file": b"%d" % number for number in range(5)})
        with pytest.raises(MalformedRequest, match="more than 3 different directories"):
            await world.inputs.require("main", world.store, root)


async def test_the_empty_root_is_always_there(world: World) -> None:
    await world.inputs.require("main", world.store, Digest.of(b""))


async def test_what_is_forgotten_in_the_middle_of_a_check_is_neither_lacked_nor_believed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another action's worker reports missing inputs while this one waits for the store."""
    await world.inputs.require("main", world.store, await world.root({"dir/part": b"part"}))
    whole = await world.root({"dir/part": b"part", "new": b"new"})
    find_missing = world.store.find_missing

    async def forgetful(digests: Iterable[Digest]) -> set[Digest]:
        world.inputs.forget("main")
        return await find_missing(digests)

    monkeypatch.setattr(world.store, "find_missing", forgetful)
    await world.inputs.require("main", world.store, whole)
    monkeypatch.undo()
    world.store.evicted.add(Digest.of(b"part"))
    with pytest.raises(InputsMissing):
        await world.inputs.require("main", world.store, whole)


async def test_a_tree_that_is_too_large_is_refused_before_all_of_it_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = await world.root({f"a/b/c/file{number}": b"%d" % number for number in range(10)})
    monkeypatch.setattr(inputs, "MAX_TREE_BYTES", 300)
    with pytest.raises(MalformedRequest, match="more than 300 bytes"):
        await world.inputs.require("main", world.store, deep)
    monkeypatch.undo()
    wide = await world.root({"a/1": b"1", "a/2": b"2", "a/3": b"3", "a/b/4": b"4"})
    world.store.evicted.add(await world.root({"4": b"4"}))
    monkeypatch.setattr(inputs, "MAX_ENTRIES", 4)
    with pytest.raises(MalformedRequest, match="more than 4 files"):
        await world.inputs.require("main", world.store, wide)
