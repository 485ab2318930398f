"""What a command sees, how its end is told, and that nothing of it remains (behaviours 18, 19, 27, 28, 29, 35, 38)."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from cas.errors import Code
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.process_table import all_processes, lies_in
from tests.worker.actions import File, Link, Worker

NONE = worker_pb2.Finished.NONE
INFRASTRUCTURE = worker_pb2.Finished.INFRASTRUCTURE


def left_in(directory: Path) -> list[int]:
    return [pid for pid, process in all_processes().items() if not process.is_dead and lies_in(pid, str(directory))]


def open_files() -> set[str]:
    """What the descriptors of this process stand for."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
    return found


async def test_a_command_runs_and_its_result_carries_times_and_streams(worker: Worker) -> None:
    finished = await worker.sh("echo out; echo err >&2; exit 3")
    result = finished.action_result
    assert (finished.status.code, finished.failure, result.exit_code) == (0, NONE, 3)
    assert await worker.read(result.stdout_digest) == b"out\n"
    assert await worker.read(result.stderr_digest) == b"err\n"
    metadata = result.execution_metadata
    times = [
        getattr(metadata, f"{name}_timestamp").ToNanoseconds()
        for name in (
            "worker_start", "input_fetch_start", "input_fetch_completed", "execution_start", "execution_completed",
            "output_upload_start", "output_upload_completed", "worker_completed",
        )
    ]  # fmt: skip
    assert metadata.worker == "w"
    assert times == sorted(times)
    assert times[0] > 0
    assert metadata.virtual_execution_duration.ToNanoseconds() > 0
    assert worker.phases == [1, 2, 3, 4, 5]


async def test_27_the_environment_is_the_declared_default_overridden_by_the_command(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_WORKER", "1")
    finished = await worker.run("/usr/bin/env", env={"PATH": "/usr/bin", "LANG": "C"})
    lines = (await worker.stdout(finished)).splitlines()
    variables = dict(line.split("=", 1) for line in lines)
    tmp = variables.pop("TMPDIR")
    assert variables == {"PATH": "/usr/bin", "LANG": "C"}
    assert tmp.startswith(str(worker.work_dir))


@pytest.mark.parametrize("name", ["/bin/echo", "echo", "tools/say", "./tools/say"])
async def test_27_the_program_is_absolute_or_relative_or_looked_up(worker: Worker, name: str) -> None:
    say = {"say": File(b'#!/bin/sh\necho "$@"\n', True)}
    finished = await worker.run(name, "hello", inputs={"pkg": {"tools": say}}, working_directory="pkg")
    assert await worker.stdout(finished) == "hello\n"


async def test_27_the_program_is_looked_up_in_the_path_of_the_command(worker: Worker) -> None:
    finished = await worker.run(
        "say", inputs={"bin": {"say": File(b"#!/bin/sh\necho mine\n", True)}}, env={"PATH": "/nowhere:bin"}
    )
    assert await worker.stdout(finished) == "mine\n"


async def test_a_script_without_an_interpreter_line_is_run_by_sh(worker: Worker) -> None:
    finished = await worker.run("./say", "x", inputs={"say": File(b"echo said $1\n", True)})
    assert await worker.stdout(finished) == "said x\n"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), Code.INVALID_ARGUMENT),
        (("",), Code.INVALID_ARGUMENT),
        (("sh", "a\0b"), Code.INVALID_ARGUMENT),
        (("no-such-program",), Code.FAILED_PRECONDITION),
        (("./no-such-program",), Code.FAILED_PRECONDITION),
        (("/etc/passwd",), Code.FAILED_PRECONDITION),
        (("/",), Code.FAILED_PRECONDITION),
        (("/bin/echo", "x" * 3_000_000), Code.INVALID_ARGUMENT),
    ],
)
async def test_a_command_that_cannot_start_is_the_clients_fault(
    worker: Worker, arguments: tuple[str, ...], code: Code
) -> None:
    finished = await worker.run(*arguments)
    assert (finished.status.code, finished.failure) == (code, NONE), finished
    assert not finished.status.details


@pytest.mark.parametrize("name", ["", "A=B", "A\0"])
async def test_an_impossible_environment_is_refused(worker: Worker, name: str) -> None:
    finished = await worker.run("/bin/true", env={name: "x"})
    assert finished.status.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("directory", ["missing", "file", "../..", "/etc", "out"])
async def test_28_the_working_directory_must_be_in_the_input_root(worker: Worker, directory: str) -> None:
    finished = await worker.run("/bin/true", inputs={"file": b"", "out": Link("/etc")}, working_directory=directory)
    assert finished.status.code in (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
    assert finished.failure == NONE


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\0b"])
async def test_28_outputs_that_leave_the_root_are_refused(worker: Worker, path: str) -> None:
    finished = await worker.run("/bin/true", output_paths=[path])
    assert finished.status.code == Code.INVALID_ARGUMENT


async def test_28_an_output_may_go_up_as_long_as_it_stays_inside(worker: Worker) -> None:
    finished = await worker.sh("echo x > ../up", inputs={"a": {}}, working_directory="a", output_paths=["../up"])
    assert await worker.outputs(finished) == {"../up": b"x\n"}


async def test_29_parents_of_outputs_exist_and_the_outputs_do_not(worker: Worker) -> None:
    finished = await worker.sh(
        "cd .. && find . | sort", inputs={"w": {}}, working_directory="w",
        output_paths=["a/b/file", "../top/x"], output_files=["ignored/x"],
    )  # fmt: skip
    assert (await worker.stdout(finished)).split() == [".", "./top", "./w", "./w/a", "./w/a/b"]


async def test_29_a_symlink_does_not_lead_output_parents_out_of_the_root(worker: Worker, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    finished = await worker.run("/bin/true", inputs={"a": Link(str(outside))}, output_paths=["a/b/c"])
    assert finished.status.code == Code.FAILED_PRECONDITION
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("script", ["exec sleep 100", "trap '' TERM; while :; do sleep 100; done"])
async def test_18_a_timed_out_action_keeps_what_it_made(worker: Worker, script: str) -> None:
    finished = await worker.sh(
        f"echo so far; echo partial > out; {script}", timeout_seconds=0.3, output_paths=["out", "never"]
    )
    assert (finished.status.code, finished.failure) == (Code.DEADLINE_EXCEEDED, NONE)
    assert await worker.read(finished.action_result.stdout_digest) == b"so far\n"
    assert await worker.outputs(finished) == {"out": b"partial\n"}
    assert left_in(worker.work_dir) == []


async def test_19_death_by_signal_is_told_as_a_shell_does(worker: Worker) -> None:
    finished = await worker.sh("kill -SEGV $$")
    assert finished.action_result.exit_code == 128 + signal.SIGSEGV
    assert "SIGSEGV" in finished.message
    assert finished.status.code == 0


@pytest.mark.parametrize("name", ["KILL", "TERM"])
async def test_19_a_kill_from_outside_is_never_a_result(worker: Worker, name: str) -> None:
    finished = await worker.sh(f"kill -{name} $$")
    assert finished.failure == INFRASTRUCTURE
    assert not finished.HasField("action_result")


async def test_19_a_failure_while_the_kernel_killed_for_memory_is_retried(worker: Worker, tmp_path: Path) -> None:
    counter = tmp_path / "vmstat"
    counter.write_text("pgfault 1\noom_kill 4\n")
    worker.context.oom = type(worker.context.oom)((counter,))
    script = f"echo oom_kill 5 > {counter}; exit 1"
    assert (await worker.sh(script)).failure == INFRASTRUCTURE
    assert (await worker.sh("exit 1")).failure == NONE


async def test_19_an_exit_like_sigterm_while_leaving_is_handed_back(worker: Worker) -> None:
    worker.context.leaving = lambda: True
    assert (await worker.sh("exit 143")).failure == INFRASTRUCTURE
    assert (await worker.sh("exit 1")).failure == NONE


async def test_35_silence_has_no_digest(worker: Worker) -> None:
    result = (await worker.run("/bin/true")).action_result
    assert not result.HasField("stdout_digest")
    assert not result.HasField("stderr_digest")


async def test_35_long_output_is_kept_whole_up_to_the_bound_and_cut_beyond_it(worker: Worker) -> None:
    finished = await worker.sh("head -c 700000 /dev/zero; head -c 3000000 /dev/zero >&2; echo done > out",
                               output_paths=["out"])  # fmt: skip
    result = finished.action_result
    assert (result.exit_code, finished.status.code) == (0, 0)
    assert await worker.read(result.stdout_digest) == bytes(700_000)
    assert await worker.read(result.stderr_digest) == bytes(1 << 20)
    assert f"stderr was cut at {1 << 20} bytes; {3_000_000 - (1 << 20)} more were thrown away" in finished.message
    assert await worker.outputs(finished) == {"out": b"done\n"}


async def test_standard_input_is_empty(worker: Worker) -> None:
    assert await worker.stdout(await worker.sh("cat; echo end")) == "end\n"


async def test_38_processes_left_behind_are_killed_and_the_temporary_directory_is_gone(worker: Worker) -> None:
    script = """
        echo keep > $TMPDIR/file
        sleep 1000 &
        setsid sleep 1001 &
        (setsid sh -c 'cd /; sleep 1002 & sleep 1003' &) &
        (setsid env -i sh -c 'cd /; exec sleep 1004' &) &
        echo $TMPDIR
    """
    before = {pid for pid, process in all_processes().items() if not process.is_dead}
    finished = await worker.sh(script)
    tmp = (await worker.stdout(finished)).strip()
    assert tmp.startswith(str(worker.work_dir))
    assert list((worker.work_dir / "w").iterdir()) == []
    me = os.getpid()
    table = all_processes()
    left = {pid for pid, process in table.items() if process.parent == me and not process.is_dead} - before
    assert left == set()
    assert left_in(worker.work_dir) == []


async def test_38_a_daemon_that_holds_the_output_open_does_not_hold_up_the_result(worker: Worker) -> None:
    async with asyncio.timeout(20):
        finished = await worker.sh("(setsid sleep 1000 &); echo said")
    assert await worker.stdout(finished) == "said\n"


async def test_38_the_neighbours_processes_are_left_alone(worker: Worker, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    neighbour = asyncio.create_task(worker.sh(f"(setsid sleep 1000 &) ; (setsid cat {gate} &) ; cat {gate}"))
    async with asyncio.timeout(20):
        while not left_in(worker.work_dir):
            await asyncio.to_thread(lambda: None)
        await worker.sh("setsid sleep 1000 &")
        fd = await asyncio.to_thread(os.open, gate, os.O_WRONLY)
        os.write(fd, b"go on\n")
        os.close(fd)
        finished = await neighbour
    assert (await worker.stdout(finished)).strip() in ("go on", "")
    assert finished.action_result.exit_code == 0
    assert left_in(worker.work_dir) == []


async def test_38_a_fork_bomb_ends_with_its_action(worker: Worker) -> None:
    # Two thousand at most: more would be the whole machine's trouble if the end took its time.
    one = "for i in $(seq 1000); do (sleep 100 &) ; done"
    script = f"(setsid sh -c '{one}' &); {one} & head -c 0; exit 0"
    async with asyncio.timeout(30):
        assert (await worker.sh(script)).action_result.exit_code == 0
    assert left_in(worker.work_dir) == []


async def test_12_a_cancelled_action_leaves_no_process_and_no_directory(worker: Worker, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    lease = await worker.lease("/bin/sh", "-c", f"trap '' TERM; setsid sleep 1000 & echo > {ready}; sleep 1000")
    task = asyncio.create_task(LeasedAction(worker.context, lease, lambda *_: None).run())
    async with asyncio.timeout(20):
        await asyncio.to_thread(ready.read_bytes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert left_in(worker.work_dir) == []
    assert list((worker.work_dir / "w").iterdir()) == []


async def test_a_slot_is_held_only_while_the_command_runs(worker: Worker) -> None:
    finished = await asyncio.gather(*(worker.sh("echo x") for _ in range(6)))
    assert [f.action_result.exit_code for f in finished] == [0] * 6
    assert worker.context.slots.free == 2


async def test_a_pipe_that_cannot_be_made_leaves_no_other_open(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    make = os.pipe2

    def second_fails(flags: int) -> tuple[int, int]:
        if made:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        ends = make(flags)
        made.append(os.readlink(f"/proc/self/fd/{ends[0]}"))
        return ends

    monkeypatch.setattr("rexec.worker.streams.os.pipe2", second_fails)
    finished = await worker.sh("echo x")
    monkeypatch.undo()

    assert finished.failure == INFRASTRUCTURE
    assert made
    assert made[0] not in open_files()


async def test_the_worker_survives_a_program_that_closes_its_streams(worker: Worker) -> None:
    finished = await worker.sh("exec >&- 2>&-; echo x > out", output_paths=["out"])
    assert await worker.outputs(finished) == {"out": b"x\n"}
