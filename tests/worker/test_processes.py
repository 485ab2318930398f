"""Starting and ending processes at the same time."""

from __future__ import annotations

import gc
import os
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.process_table import ProcessStat, all_processes, ticks_now
from rexec.worker.processes import ActionProcesses, Processes
from rexec.worker.runner import Runner
from rexec.worker.spawn_gate import SpawnGate
from tests.worker.actions import Worker


async def test_an_action_that_is_just_starting_does_not_belong_to_one_that_is_just_ending(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, decides = threading.Event(), threading.Event()
    popen, belongs = subprocess.Popen, Processes._belongs

    class SlowGate(SpawnGate):
        def settle(self) -> None:
            decides.set()
            super().settle()

    def look() -> dict[int, ProcessStat]:
        table = all_processes()
        looked.set()
        return table

    def decide(self: Processes, process: ProcessStat, *rest: Any) -> bool:
        result = belongs(self, process, *rest)
        decides.set()
        return result

    gate = SlowGate()
    all_of_them = Processes(gate)
    ending = popen(["sleep", "1000"], start_new_session=True)
    action: ActionProcesses = all_of_them.started(ending.pid, str(tmp_path), ticks_now())
    killing = threading.Thread(target=all_of_them.kill, args=(action,))

    def start(*arguments: Any, **options: Any) -> Any:
        process = popen(*arguments, **options)
        killing.start()
        assert looked.wait(20)
        assert decides.wait(20)
        return process

    monkeypatch.setattr("rexec.worker.processes.all_processes", look)
    monkeypatch.setattr(Processes, "_belongs", decide)
    monkeypatch.setattr(subprocess, "Popen", start)
    worker.context.runner = Runner(all_of_them, 0.2, gate=gate)
    finished = await worker.sh("for i in 1 2 3 4 5 6 7 8 9; do sleep 0.02; done; echo lived")
    killing.join()
    ending.wait()
    all_of_them.ended(action)
    assert (finished.failure, finished.message) == (worker_pb2.Finished.NONE, "")
    assert await worker.stdout(finished) == "lived\n"


async def test_a_command_that_cannot_be_watched_is_ended(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left for its pidfd."""
    pidfd_open = os.pidfd_open
    started: list[int] = []

    def full_at_first(pid: int, flags: int = 0) -> int:
        started.append(pid)
        if len(started) == 1:
            raise OSError(24, "too many open files")
        return pidfd_open(pid, flags)

    monkeypatch.setattr(os, "pidfd_open", full_at_first)
    gc.collect()  # or what tests before this one have left may close meanwhile
    descriptors = os.listdir("/proc/self/fd")
    finished = await worker.sh("exec sleep 1000")
    assert finished.failure == worker_pb2.Finished.INFRASTRUCTURE
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)
