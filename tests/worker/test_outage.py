"""A store that is not reached for a while: outputs are kept for it, inputs are waited for while nobody could be told."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cas.digest import Digest
from cas.errors import NotAllowed, StatusError, Unavailable
from cas.memory import MemoryStore
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.outage import LONGEST_PAUSE_SECONDS, Outage
from tests.worker.actions import Inputs, Worker, make_context


class Away(MemoryStore):
    """Not reached until somebody has paused so often."""

    def __init__(self) -> None:
        super().__init__()
        self.failure: StatusError | None = None

    async def find_missing(self, digests: Iterable[Digest]) -> set[Digest]:
        self._need()
        return await super().find_missing(digests)

    async def read_many(self, digests: Sequence[Digest]) -> dict[Digest, bytes]:
        self._need()
        return await super().read_many(digests)

    def _need(self) -> None:
        if self.failure is not None:
            raise self.failure


class Rig:
    def __init__(self, worker: Worker, store: Away, patience_seconds: float, back_after: int) -> None:
        self.worker = worker
        self.store = store
        self.now = 0.0
        self.pauses: list[float] = []
        self._back_after = back_after
        worker.context.outage = Outage(patience_seconds, self._pause, lambda: self.now)

    async def _pause(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        if len(self.pauses) == self._back_after:
            self.store.failure = None

    async def sh(self, script: str, *, away: StatusError, phase: worker_pb2.Progress.Phase, **options: Any) -> Any:
        """Run, with the store failing from a phase on."""
        lease = await self.worker.lease("/bin/sh", "-c", script, **options)

        def progress(reached: worker_pb2.Progress.Phase, _metadata: object) -> None:
            if reached == phase:
                self.store.failure = away

        return await LeasedAction(self.worker.context, lease, progress).run()


async def make_rig(tmp_path: Path, patience_seconds: float = 300.0, back_after: int = 8) -> Rig:
    store = Away()
    context = await make_context(tmp_path / "work", store)
    return Rig(Worker(context, Inputs(store), tmp_path / "work"), store, patience_seconds, back_after)


UPLOADING = worker_pb2.Progress.UPLOADING
FETCHING = worker_pb2.Progress.FETCHING
INFRASTRUCTURE = worker_pb2.Finished.INFRASTRUCTURE


async def test_outputs_wait_for_the_store_to_come_back(tmp_path: Path) -> None:
    rig = await make_rig(tmp_path)
    finished = await rig.sh("echo x > f; echo out", away=Unavailable("gone"), phase=UPLOADING, output_paths=["f"])
    assert await rig.worker.stdout(finished) == "out\n"
    assert await rig.worker.outputs(finished) == {"f": b"x\n"}
    assert len(rig.pauses) == 8
    assert rig.pauses[0] <= 0.5
    assert LONGEST_PAUSE_SECONDS / 2 <= rig.pauses[-1] <= LONGEST_PAUSE_SECONDS
    rig.worker.context.workspace.close()


async def test_patience_has_an_end_and_then_the_action_is_for_another_worker(tmp_path: Path) -> None:
    rig = await make_rig(tmp_path, patience_seconds=60.0, back_after=1000)
    finished = await rig.sh("echo out", away=Unavailable("gone"), phase=UPLOADING)
    assert (finished.failure, finished.message) == (INFRASTRUCTURE, "cannot upload outputs: gone")
    assert 40 <= rig.now <= 60
    rig.worker.context.workspace.close()


async def test_what_waiting_does_not_mend_is_not_waited_for(tmp_path: Path) -> None:
    rig = await make_rig(tmp_path)
    finished = await rig.sh("echo out", away=NotAllowed("not you"), phase=UPLOADING)
    assert (finished.failure, rig.pauses) == (INFRASTRUCTURE, [])
    rig.worker.context.workspace.close()


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "on its own"])
async def test_inputs_are_waited_for_while_the_scheduler_is_away_too(tmp_path: Path, attached: bool) -> None:
    rig = await make_rig(tmp_path, back_after=3)
    rig.worker.context.attached = lambda: attached
    finished = await rig.sh("cat f", away=Unavailable("gone"), phase=FETCHING, inputs={"f": b"input"})
    if attached:
        assert (finished.failure, rig.pauses) == (INFRASTRUCTURE, [])
        assert finished.message == "cannot fetch inputs: gone"
    else:
        assert await rig.worker.stdout(finished) == "input"
        assert len(rig.pauses) == 3
    rig.worker.context.workspace.close()
