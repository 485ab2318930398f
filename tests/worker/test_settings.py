"""Settings that make no sense are refused with the value."""

from __future__ import annotations

from typing import Any

import pytest

from rexec.worker.settings import WorkerSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("slots", 0),
        ("slots", 4097),
        ("prefetch_leases", -1),
        ("cache_max_bytes", 0),
        ("stdout_max_bytes", 0),
        ("kill_grace_seconds", -1.0),
        ("drain_grace_seconds", -0.5),
        ("upload_patience_seconds", -1.0),
        ("reconnect_min_seconds", 0.0),
        ("reconnect_max_seconds", 0.01),
        ("memory_reserve_bytes", -1),
        ("least_available_memory_bytes", -1),
        ("least_free_disk_bytes", -1),
        ("max_load_per_core", float("nan")),
        ("max_load_per_core", float("inf")),
        ("max_open_files", 15),
        ("max_processes", -1),
        ("file_max_bytes", 0),
        ("resources", {"gpu": -1}),
        ("resources", {"": 1}),
        ("environment", {"A=B": "x"}),
        ("environment", {"": "x"}),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*expected"):
        WorkerSettings(**{field: value})


def test_the_name_is_that_of_the_host_and_process_unless_given() -> None:
    assert WorkerSettings(name="a").worker_name == "a"
    assert "-" in WorkerSettings().worker_name


def test_an_address_of_a_scheduler_that_is_none_is_refused_with_what_was_expected() -> None:
    assert WorkerSettings(scheduler=("grpc://a:1", "b:2")).scheduler == ("grpc://a:1", "b:2")
    with pytest.raises(ValueError, match="'nowhere' is not an address, expected HOST:PORT"):
        WorkerSettings(scheduler=("grpc://a:1", "nowhere"))
