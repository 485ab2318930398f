"""What strangers say, on a terminal and as JSON."""

from __future__ import annotations

import json

import grpc
import pytest
from rich.cells import cell_len

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import status_pb2
from rexec.ps_command import operation_lines, where, worker_lines
from rexec.status_client import explained
from rexec.status_text import columns, cut, duration, harmless, json_line, money, plain, size

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07",
    "a\nroot  executing  forged line",
    "\r overwritten",
    "\u202e reversed",
    "\x9b31m",
    "\u2028\u2029",
    "\U000e0041",
    "\x7f\b",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_steers_a_terminal_comes_through(text: str) -> None:
    shown = harmless(text)
    assert shown.isprintable()
    assert shown != text
    assert all(character in shown for character in text if character.isprintable())


def test_a_name_that_is_printable_stays_as_it_is() -> None:
    assert harmless("//src:größe 編譯") == "//src:größe 編譯"


@pytest.mark.parametrize(
    ("text", "cells", "shown"),
    [
        ("abc", 3, "abc"),
        ("abcd", 3, "ab…"),
        ("編譯器", 5, "編譯…"),
        ("編譯器", 4, "編…"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_a_text_is_cut_to_the_cells_there_are(text: str, cells: int, shown: str) -> None:
    assert cut(text, cells) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (-5, "0s"), (float("nan"), "0s"), (0.44, "0.4s"), (9.94, "9.9s"), (9.96, "9s"), (59.9, "59s"),
     (60, "1m00s"), (3599, "59m59s"), (3600, "1h00m"), (86399, "23h59m"), (86400, "1d00h"), (1e30, "9999d00h"),
     (float("inf"), "9999d00h")],
)  # fmt: skip
def test_a_duration_is_short(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_sizes_and_money() -> None:
    assert [size(amount) for amount in (0, 1023, 1024, 10 << 20, 3 << 40, 1 << 60)] == [
        "0B", "1023B", "1.0KiB", "10MiB", "3.0TiB", "1048576TiB"
    ]  # fmt: skip
    assert [money(0, "EUR"), money(0.00123, "EUR"), money(12.345, "")] == ["0.00 EUR", "0.0012 EUR", "12.35"]
    assert money(1, "\x1b[31m") == "1.00 \\x1b[31m"


def test_columns_line_up_and_no_line_is_wider_than_the_terminal() -> None:
    rows = [("編譯", "x" * 100, "y" * 300), ("b", "c", "d\x1b[0m")]
    lines = columns(("ONE", "TWO", "THREE"), rows, 80)
    assert all(cell_len(line) <= 80 for line in lines)
    assert "\x1b" not in "".join(lines)
    whole = columns(("ONE", "TWO", "THREE"), rows, None)
    assert "x" * 100 in whole[1]
    assert whole[1].endswith("y" * 300)
    assert (
        len({cell_len(line[: line.index(last)]) for line, last in zip(whole, ("THREE", "yyy", "d\\"), strict=True)})
        == 1
    )


def hostile_operation(text: str) -> status_pb2.FoundOperation:
    operation = status_pb2.FoundOperation(
        name=f"operations/{text}", stage=re_pb2.ExecutionStage.QUEUED, reason=text, summary=text, action_class=text
    )
    operation.owner.user = operation.owner.invocation = operation.owner.tenant = operation.instance_name = text
    return operation


def hostile_worker(text: str) -> status_pb2.FoundWorker:
    worker = status_pb2.FoundWorker(name=text, software_version=text, reason=text, resources={text: 1})
    worker.properties.add(name=text, value=text)
    worker.running.add(operation=text, summary=text)
    return worker


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("width", [None, 80])
def test_a_hostile_name_makes_one_harmless_line(text: str, width: int | None) -> None:
    for lines in (operation_lines([hostile_operation(text)], width), worker_lines([hostile_worker(text)], width)):
        assert len(lines) == 2
        assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("text", HOSTILE)
def test_json_is_one_line_of_ascii_that_says_what_was_said(text: str) -> None:
    for message in (hostile_operation(text), hostile_worker(text)):
        line = json_line(message)
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["reason"] == text


def test_json_names_every_field() -> None:
    found = status_pb2.FoundOperation(stage=re_pb2.ExecutionStage.EXECUTING, age_seconds=float("nan"))
    said = plain(found)
    assert set(said) == {field.name for field in status_pb2.FoundOperation.DESCRIPTOR.fields}
    assert (said["stage"], said["running_seconds"], said["age_seconds"], said["owner"]) == (
        "executing", None, None, None
    )  # fmt: skip
    found.stage = 77  # type: ignore[assignment]  # of a newer server
    assert plain(found)["stage"] == 77
    assert "77" in operation_lines([found], None)[1]
    assert plain(status_pb2.FoundWorker(resources={"cpu": 2000}))["resources"] == {"cpu": 2000}


def test_where_an_operation_is() -> None:
    found = status_pb2.FoundOperation(worker="w1")
    assert where(found) == "on w1"
    found.running_seconds = 3
    assert where(found) == "on w1 for 3.0s"
    found.expected_seconds = 75
    assert where(found) == "on w1 for 3.0s of about 1m15s"
    assert where(status_pb2.FoundOperation(reason="because")) == "because"
    assert where(status_pb2.FoundOperation(result="failed", worker="w1")) == "failed"


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_failure_is_explained_on_one_harmless_line(code: grpc.StatusCode) -> None:
    text = explained(code, "\x1b[2J" + "x" * 10_000, "grpc://server:1")
    assert "grpc://server:1" in text
    assert text.isprintable()
    assert len(text) < 700


@pytest.mark.parametrize(
    ("code", "what_to_do"),
    [
        (grpc.StatusCode.UNAVAILABLE, "--server"),
        (grpc.StatusCode.UNIMPLEMENTED, "older than this program"),
        (grpc.StatusCode.UNAUTHENTICATED, "--token-file"),
        (grpc.StatusCode.PERMISSION_DENIED, "right to execute"),
    ],
)
def test_the_usual_failures_say_what_to_do(code: grpc.StatusCode, what_to_do: str) -> None:
    assert what_to_do in explained(code, "", "grpc://server:1")


def test_the_digests_of_programs_are_left_out_where_there_is_little_room() -> None:
    worker = status_pb2.FoundWorker(name="w")
    worker.properties.add(name="gcc", value="12.2.0")
    worker.properties.add(name="gcc-digest", value="0" * 64)
    assert "gcc=12.2.0 gcc-digest=" + "0" * 64 in worker_lines([worker], None)[1]
    assert "gcc=12.2.0" in worker_lines([worker], 200)[1]
    assert "digest" not in worker_lines([worker], 200)[1]
