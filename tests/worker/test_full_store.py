"""Outputs that the store has no room for, and a worker's disk that is full: an end that no client tries again for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from cas.digest import Digest
from cas.errors import Code, StatusError, StoreFull
from cas.memory import MemoryStore
from protos.rexec.worker.v1 import worker_pb2
from tests.worker.actions import Inputs, Worker, make_context

STORE_BYTES = 256 << 10


class FullAtFirst(MemoryStore):
    """Has no room for anything but inputs until it has refused `refusals` times."""

    refusals = 0

    async def write_many(self, blobs: Sequence[tuple[Digest, bytes]]) -> Mapping[Digest, StatusError]:
        if self.refusals:
            self.refusals -= 1
            return {digest: StoreFull("no room just now") for digest, _ in blobs}
        return await super().write_many(blobs)


@pytest_asyncio.fixture
async def small(tmp_path: Path) -> AsyncIterator[Worker]:
    store = FullAtFirst(STORE_BYTES)
    context = await make_context(tmp_path / "work", store)
    context.full_store_pauses_seconds = (0.0,)
    yield Worker(context, Inputs(store), tmp_path / "work")
    context.workspace.close()


@pytest.mark.parametrize("path", ["sub/big", "sub"], ids=["file", "directory"])
@pytest.mark.parametrize("size_bytes", [STORE_BYTES + 1, 3 << 20], ids=["in a batch", "alone"])
async def test_an_output_larger_than_the_store_ends_the_action_and_is_named(
    small: Worker, path: str, size_bytes: int
) -> None:
    script = f"echo about to write >&2; mkdir -p sub; head -c {size_bytes} /dev/zero > sub/big"
    finished = await small.sh(script, output_paths=[path])
    assert (finished.failure, finished.status.code) == (worker_pb2.Finished.NONE, Code.FAILED_PRECONDITION)
    assert not finished.status.details  # a violation or RetryInfo would make clients try again
    for said in ("'sub/big'", f"{size_bytes} bytes", f"{STORE_BYTES} bytes", "[store] max_bytes"):
        assert said in finished.status.message
    assert finished.message == finished.status.message
    assert finished.action_result.stderr_raw == b"about to write\n"
    assert not finished.action_result.output_files


async def test_what_a_command_prints_may_be_too_large_as_well(small: Worker) -> None:
    finished = await small.sh(f"head -c {STORE_BYTES} /dev/zero; echo the end")
    assert finished.status.code == Code.FAILED_PRECONDITION
    assert "the standard output of" in finished.status.message
    assert finished.action_result.stdout_raw.endswith(b"\0the end\n")
    assert len(finished.action_result.stdout_raw) < STORE_BYTES


async def test_a_store_that_is_full_for_a_moment_is_waited_for(small: Worker) -> None:
    lease = await small.inputs.tree({})
    assert isinstance(small.store, FullAtFirst)
    small.store.refusals = 1
    finished = await small.sh("echo hello", inputs=lease)
    assert await small.stdout(finished) == "hello\n"


async def test_a_store_that_stays_full_ends_the_action(small: Worker) -> None:
    root = await small.inputs.tree({})
    assert isinstance(small.store, FullAtFirst)
    small.store.refusals = 2
    finished = await small.sh("echo hello", inputs=root)
    assert (finished.failure, finished.status.code) == (worker_pb2.Finished.NONE, Code.FAILED_PRECONDITION)
    assert "no room just now" in finished.status.message


async def test_a_command_that_failed_on_a_full_disk_shows_what_it_printed(
    small: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small.context.workspace, "free_bytes", lambda: 0)
    finished = await small.sh("echo no space left >&2; exit 4")
    assert (finished.failure, finished.status.code) == (
        worker_pb2.Finished.INFRASTRUCTURE,
        Code.FAILED_PRECONDITION,
    )
    assert "disk was full" in finished.status.message
    assert (finished.action_result.exit_code, finished.action_result.stderr_raw) == (4, b"no space left\n")
