"""Which blobs must go: the ledger against a model of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import Digest
from cas.errors import StoreFull
from cas.ledger import STAMP_SECONDS, Ledger


def digest(number: int, size_bytes: int = 10) -> Digest:
    return Digest(f"{number:064x}", size_bytes)


def ledger(max_bytes: int) -> Ledger:
    return Ledger(max_bytes, charge=lambda size_bytes: size_bytes)


def hold(held: Ledger, wanted: Digest) -> list[Digest]:
    victims = held.reserve(wanted.size_bytes)
    held.keep(wanted, 0.0)
    return victims


steps = st.lists(st.tuples(st.sampled_from(["hold", "touch", "reserve", "release"]), st.integers(0, 15)), max_size=80)


@given(steps)
def test_the_bound_is_kept_and_the_oldest_go_first(taken: list[tuple[str, int]]) -> None:
    held, model, open_writes = ledger(100), list[Digest](), list[int]()
    for step, number in taken:
        wanted = digest(number, number * 3 + 1)
        if step == "touch":
            assert (held.touch(wanted, 0.0) is not None) == (wanted in model)
            if wanted in model:
                model.remove(wanted)
                model.append(wanted)
        elif step == "release":
            if open_writes:
                held.release(open_writes.pop())
        elif step == "reserve" or wanted not in model:
            if sum(open_writes) + wanted.size_bytes > 100:
                with pytest.raises(StoreFull):
                    held.reserve(wanted.size_bytes)
                continue
            victims = held.reserve(wanted.size_bytes)
            assert victims == model[: len(victims)]
            # No more than needed: with the last of them still there it would not have fitted.
            del model[: len(victims)]
            room = 100 - sum(open_writes) - wanted.size_bytes - sum(kept.size_bytes for kept in model)
            assert room >= 0
            assert not victims or room < victims[-1].size_bytes
            if step == "hold":
                held.keep(wanted, 0.0)
                model.append(wanted)
            else:
                open_writes.append(wanted.size_bytes)
        assert held.used_bytes == sum(kept.size_bytes for kept in model)
        assert held.reserved_bytes == sum(open_writes)
        assert held.used_bytes + held.reserved_bytes <= 100
        assert len(held) == len(model)
    everything = {digest(number, number * 3 + 1) for number in range(16)}
    assert held.find_missing(everything, 0.0) == everything - set(model)


def test_asking_whether_a_blob_is_missing_counts_as_use() -> None:
    held = ledger(30)
    for number in range(3):
        hold(held, digest(number))
    held.find_missing([digest(0)], 0.0)

    assert hold(held, digest(3)) == [digest(1)]


def test_a_blob_written_anew_is_not_forgotten_for_the_damage_of_the_old_one() -> None:
    held = ledger(10)
    hold(held, digest(1))
    entry = held.touch(digest(1), 0.0)
    assert entry is not None
    hold(held, digest(2))
    hold(held, digest(1))

    assert not held.forget(digest(1), entry)
    assert digest(1) in held


def test_the_time_of_use_is_renewed_once_an_hour() -> None:
    held = ledger(100)
    hold(held, digest(1))

    held.touch(digest(1), STAMP_SECONDS)
    assert held.take_stale() == []

    held.touch(digest(1), STAMP_SECONDS + 1)
    held.find_missing([digest(1)], STAMP_SECONDS + 2)
    assert held.take_stale() == [digest(1)]
    assert held.take_stale() == []


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_store_without_room_is_refused(max_bytes: int) -> None:
    with pytest.raises(ValueError, match=str(max_bytes)):
        ledger(max_bytes)


def test_a_blob_larger_than_the_store_is_refused_by_name() -> None:
    with pytest.raises(StoreFull, match=digest(1).hash):
        ledger(9).require_room(digest(1))


def test_what_is_held_is_passed_over_and_what_cannot_be_had_forgets_nothing() -> None:
    held = ledger(40)
    for number in range(4):
        hold(held, digest(number))

    assert held.reserve(10, {digest(0)}) == [digest(1)]
    with pytest.raises(StoreFull, match="do not fit together"):
        held.reserve(10, {digest(0), digest(2), digest(3)})
    assert (held.used_bytes, held.reserved_bytes) == (30, 10)
    assert all(digest(number) in held for number in (0, 2, 3))
