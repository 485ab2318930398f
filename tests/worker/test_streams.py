"""CapturedStream: where it ends, and what it gives back."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from rexec.worker.streams import MEMORY_BYTES, CapturedStream


def open_descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")


async def test_what_was_written_before_the_end_is_kept_to_the_last_byte(tmp_path: Path) -> None:
    stream = CapturedStream(str(tmp_path / "stdout"), 1 << 20)
    writer = os.dup(stream.write_fd)
    stream.started(asyncio.get_running_loop())
    os.write(writer, b"x" * MEMORY_BYTES)
    stream.finish()
    os.close(writer)
    assert stream.kept == b"x" * MEMORY_BYTES


@pytest.mark.parametrize("max_bytes", [10, 1 << 20], ids=["dropped", "kept"])
async def test_a_writer_that_goes_on_does_not_prolong_the_end(tmp_path: Path, max_bytes: int) -> None:
    before = open_descriptors()
    stream = CapturedStream(str(tmp_path / "stdout"), max_bytes)
    writer = os.dup(stream.write_fd)
    written = 0

    def escaped() -> None:
        """Write again whenever something was read."""
        nonlocal written
        assert written < 10, "the end waits for the writer"
        written += 1
        os.write(writer, b"later")

    stream.started(asyncio.get_running_loop())
    os.write(writer, b"first")
    stream.on_growth = escaped
    stream.finish()
    os.close(writer)

    assert stream.read_at(0, 5) == b"first"
    assert written == 1
    assert open_descriptors() == before
