"""When a worker takes no leases because of its machine, and when it does again."""

from __future__ import annotations

from rexec.worker.leasing_guard import LeasingGuard, Reading, Reserves

MIB = 1 << 20
FINE = Reading(free_disk_bytes=10_000 * MIB, available_memory_bytes=10_000 * MIB, load=1.0)


def test_a_machine_that_is_well_takes_leases() -> None:
    guard = LeasingGuard(Reserves(512 * MIB, 256 * MIB, 4.0))
    assert guard.decide(FINE) == ""


def test_a_disk_that_is_nearly_full_stops_leases_until_there_is_clearly_more_room() -> None:
    guard = LeasingGuard(Reserves(free_disk_bytes=512 * MIB))
    said = [guard.decide(Reading(left * MIB, 0, 0.0)) for left in (512, 511, 512, 639, 640, 512)]
    assert [bool(reason) for reason in said] == [False, True, True, True, False, False]
    assert said[1] == (
        "511 MiB left on the disk of the work directory, 512 MiB are kept free ([worker] least_free_disk_bytes)"
    )


def test_memory_that_runs_out_stops_leases_but_memory_that_is_unknown_does_not() -> None:
    guard = LeasingGuard(Reserves(available_memory_bytes=256 * MIB))
    said = [guard.decide(Reading(0, left * MIB, 0.0)) for left in (0, 255, 300, 320, 256)]
    assert [bool(reason) for reason in said] == [False, True, True, False, False]
    assert "255 MiB of memory left" in said[1]


def test_load_stops_leases_only_where_a_bound_is_set() -> None:
    assert LeasingGuard(Reserves()).decide(Reading(0, 1, 1000.0)) == ""
    guard = LeasingGuard(Reserves(max_load=4.0))
    said = [guard.decide(Reading(0, 0, load)) for load in (4.0, 4.1, 3.7, 3.6, 4.0)]
    assert [bool(reason) for reason in said] == [False, True, True, False, False]
    assert said[1] == "load average 4.1, at most 4.0 ([worker] max_load_per_core)"


def test_every_reason_is_named_and_each_has_its_own_way_back() -> None:
    guard = LeasingGuard(Reserves(512 * MIB, 256 * MIB, 4.0))
    said = guard.decide(Reading(MIB, MIB, 9.0))
    assert all(word in said for word in ("disk", "memory", "load"))
    assert guard.disk_is_short
    said = guard.decide(Reading(10_000 * MIB, MIB, 1.0))
    assert "disk" not in said
    assert "memory" in said
    assert not guard.disk_is_short
