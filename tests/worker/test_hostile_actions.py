"""Actions that do all the harm they can, under each isolation: they end, are told of, and leave nothing to the next one."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cas.errors import Code
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.landlock import Landlock
from rexec.worker.process_table import all_processes
from rexec.worker.system_calls import architecture
from tests.worker.actions import File, Inputs, Worker, make_context

NONE = worker_pb2.Finished.NONE
PATH = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
MIB = 1 << 20
INPUTS: dict[str, Any] = {
    "d": {f"{number:02}": f"input {number}\n".encode() for number in range(12)},
    "tool": File(b"#!/bin/sh\necho tool\n", True),
}


def has_landlock() -> bool:
    try:
        return Landlock(architecture()).abi() > 0
    except (OSError, LookupError):
        return False


@pytest_asyncio.fixture(params=["none", "bubblewrap", *(["landlock"] if has_landlock() else [])])
async def worker(request: pytest.FixtureRequest, tmp_path: Path, store: MemoryStore) -> AsyncIterator[Worker]:
    before = alive()
    context = await make_context(
        tmp_path / "work", store, isolation=request.param, stdout_max_bytes=MIB, max_processes=50, max_open_files=2000,
        output_max_bytes=64 * MIB,
    )  # fmt: skip
    worker = Worker(context, Inputs(store), tmp_path / "work")
    yield worker
    assert alive() <= before, "processes are left"
    # The next action finds all as it should be, whatever the one before did to what they share.
    finished = await worker.sh("cat d/*; ./tool; ls . d | wc -l", inputs=INPUTS, env=PATH)
    expected = "".join(f"input {number}\n" for number in range(12))
    assert await worker.stdout(finished) == f"{expected}tool\n{12 + 2 + 3}\n"
    context.kept.drop_all()
    assert os.listdir(f"{context.workspace.path}/w") == []
    context.workspace.close()
    assert os.listdir(f"{context.workspace.path}/trash") == []


def alive() -> set[int]:
    """Descendants of this process that have not ended."""
    table = all_processes()
    found = {os.getpid()}
    while more := {pid for pid, it in table.items() if it.parent in found and not it.is_dead} - found:
        found |= more
    return found - {os.getpid()}


async def tree_of(worker: Worker, finished: worker_pb2.Finished) -> re_pb2.Tree:
    assert finished.status.code == 0, finished
    [directory] = finished.action_result.output_directories
    return re_pb2.Tree.FromString(await worker.read(directory.tree_digest))


BOMBS = {
    "generations": "f() { if [ $1 -lt 9 ]; then f $(($1+1)) | f $(($1+1)) & fi; sleep 100; }; f 0; sleep 1000",
    "sessions": "for i in $(seq 1000); do (setsid sleep 100 &); done; sleep 1000",
}
"""They burn out at a thousand processes, so that a machine too busy to look outlives them."""


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_a_fork_bomb_is_bounded_and_ended(worker: Worker, bomb: str) -> None:
    async with asyncio.timeout(60):
        finished = await worker.sh(bomb, inputs=INPUTS, env=PATH)
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert "more than 50 processes ([worker] max_processes)" in finished.message


DAEMONS = {
    "of another session": "setsid sleep 1000 >&- 2>&- &",
    "of nobody": "(setsid env -i sh -c 'cd /; trap \"\" TERM HUP; sleep 1001 & sleep 1002' >&- 2>&- &) &",
    "that holds the streams": "(setsid sleep 1000 &) &",
}


@pytest.mark.parametrize("daemon", DAEMONS.values(), ids=DAEMONS)
async def test_a_daemon_ends_with_its_action(worker: Worker, daemon: str) -> None:
    async with asyncio.timeout(30):
        finished = await worker.sh(f"{daemon}\necho said; exit 3", inputs=INPUTS, env=PATH)
    assert finished.action_result.exit_code == 3
    assert await worker.stdout(finished) == "said\n"


async def test_a_gigabyte_on_stdout_is_cut_and_said_to_be(worker: Worker) -> None:
    finished = await worker.sh("head -c 1G /dev/zero; echo end >&2", inputs=INPUTS, env=PATH)
    assert finished.action_result.exit_code == 0
    assert finished.action_result.stdout_digest.size_bytes == MIB
    assert f"stdout was cut at {MIB} bytes; {(1 << 30) - MIB} more were thrown away" in finished.message
    assert await worker.read(finished.action_result.stderr_digest) == b"end\n"


async def test_who_ignores_sigterm_is_killed_in_the_end(worker: Worker) -> None:
    script = (
        "trap '' TERM INT HUP; echo partial > out; (trap '' TERM; setsid sleep 1000 &); while :; do sleep 100; done"
    )
    async with asyncio.timeout(30):
        finished = await worker.sh(script, inputs=INPUTS, timeout_seconds=0.5, output_paths=["out"], env=PATH)
    assert (finished.status.code, finished.failure) == (Code.DEADLINE_EXCEEDED, NONE)
    assert await worker.outputs(finished) == {"out": b"partial\n"}


HARM = {
    "writes to them": "for f in d/* tool; do echo evil > $f; echo evil >> $f; done 2>/dev/null; true",
    "opens them up": "chmod -R u+w . && for f in d/* tool; do echo evil > $f; done",
    "deletes them": "rm -rf d tool",
    "deletes one and puts another there": "rm -f d/03 tool; echo evil > d/03; ln -s /bin/false tool",
    "deletes everything": "rm -rf -- * .[!.]* 2>/dev/null; cd ..; rm -rf root tmp 2>/dev/null; true",
    "moves them": "mv d e; mv tool d; mkdir f; mv e/03 f",
    "touches them": "touch -d @1 d/* tool; chmod 000 d",
    "links them": "for f in d/*; do ln $f $f.again; done; rm d/0*",
    "cuts them": "chmod u+w d/*; truncate -s 0 d/*",
}


@pytest.mark.parametrize("harm", HARM.values(), ids=HARM)
async def test_who_changes_or_deletes_its_inputs_harms_itself_alone(worker: Worker, harm: str) -> None:
    """The fixture looks at the inputs afterwards."""
    finished = await worker.sh(harm, inputs=INPUTS, env=PATH)
    assert (finished.status.code, finished.failure) == (0, NONE), finished


SEALED = {
    "empty": "mkdir x; chmod 000 x",
    "full": "mkdir -p x/y/z; echo > x/y/z/f; chmod 000 x/y/z/f x/y/z x/y x",
    "below TMPDIR": "mkdir -p $TMPDIR/x/y; echo > $TMPDIR/x/y/f; chmod 000 $TMPDIR/x/y $TMPDIR/x",
    "unwritable": "mkdir -p x/y; echo > x/y/f; chmod 555 x/y x",
    "the root": "mkdir x; chmod 000 x . ",
}


@pytest.mark.parametrize("sealed", SEALED.values(), ids=SEALED)
async def test_directories_without_permissions_are_deleted_all_the_same(worker: Worker, sealed: str) -> None:
    finished = await worker.sh(sealed, inputs=INPUTS, env=PATH)
    assert (finished.status.code, finished.failure) == (0, NONE), finished


async def test_outputs_in_directories_without_permissions_are_read(worker: Worker) -> None:
    finished = await worker.sh(
        "mkdir -p out/sub; echo x > out/sub/f; chmod 000 out/sub/f out/sub",
        inputs=INPUTS,
        output_paths=["out"],
        env=PATH,
    )
    tree = await tree_of(worker, finished)
    assert await worker.read(tree.children[0].files[0].digest) == b"x\n"


UNFIT = {
    "fifo": ("mkfifo out/x", "a named pipe"),
    "socket": ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"out/x\")'", "a socket"),
    "file that is not UTF-8": ("touch \"$(printf 'out/\\377')\"", "not UTF-8"),
    "directory that is not UTF-8": ("mkdir \"$(printf 'out/\\351t\\351')\"", "not UTF-8"),
    "symlink that is not UTF-8": ("ln -s x \"$(printf 'out/\\300\\257')\"", "not UTF-8"),
    "target that is not UTF-8": ("ln -s \"$(printf '\\377')\" out/x", "not UTF-8"),
}


@pytest.mark.parametrize(("script", "said"), UNFIT.values(), ids=UNFIT)
async def test_an_output_that_no_message_can_hold_is_named(worker: Worker, script: str, said: str) -> None:
    finished = await worker.sh(f"mkdir out; {script}", inputs=INPUTS, output_paths=["out"], env=PATH)
    if said == "a socket" and finished.action_result.exit_code == 1:
        assert b"PermissionError" in await worker.read(finished.action_result.stderr_digest)
        return
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE), finished
    assert said in finished.status.message


@pytest.mark.parametrize(("script", "said"), UNFIT.values(), ids=UNFIT)
async def test_such_things_beside_the_outputs_do_not_matter(worker: Worker, script: str, said: str) -> None:
    finished = await worker.sh(
        f"mkdir out $TMPDIR/out; {script}; echo {said} > fine; cd $TMPDIR; {script}; true",
        inputs=INPUTS, output_paths=["fine"], env=PATH,
    )  # fmt: skip
    assert await worker.outputs(finished) == {"fine": f"{said}\n".encode()}


async def test_a_device_is_not_made_or_is_no_output(worker: Worker) -> None:
    finished = await worker.sh(
        "mkdir out; mknod out/null c 1 3 && mknod out/disk b 7 0", inputs=INPUTS, output_paths=["out"], env=PATH
    )
    if worker.context.settings.isolation == "none" and finished.action_result.exit_code == 0:
        assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
        assert "device" in finished.status.message
    else:
        assert finished.action_result.exit_code == 1
        assert not (await tree_of(worker, finished)).root.files


async def test_loops_and_long_names_are_outputs_like_others(worker: Worker) -> None:
    name = "n" * 255
    finished = await worker.sh(
        f"mkdir -p out/{name}; cd out; ln -s loop loop; ln -s . self; ln -s a b; ln -s b a; ln -s ../.. up; echo > {name}/{name}",
        inputs=INPUTS, output_paths=["out"], env=PATH,
    )  # fmt: skip
    tree = await tree_of(worker, finished)
    links = {node.name: node.target for node in tree.root.symlinks}
    assert links == {"loop": "loop", "self": ".", "a": "b", "b": "a", "up": "../.."}
    assert [node.name for node in tree.root.directories] == [name]
    assert [node.name for node in tree.children[0].files] == [name]


async def test_a_sparse_file_is_an_output_only_as_far_as_it_may_be_large(worker: Worker) -> None:
    finished = await worker.sh("truncate -s 4M out; exit $?", inputs=INPUTS, output_paths=["out"], env=PATH)
    assert await worker.outputs(finished) == {"out": bytes(4 << 20)}
    finished = await worker.sh("truncate -s 1G out; exit $?", inputs=INPUTS, output_paths=["out"], env=PATH)
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert "[worker] output_max_bytes" in finished.status.message


async def test_a_deep_tree_is_deleted(worker: Worker) -> None:
    script = "import os\nfor _ in range(3000): os.mkdir('x' * 9); os.chdir('x' * 9)"
    assert (await worker.run("python3", "-c", script, inputs=INPUTS, env=PATH)).action_result.exit_code == 0


async def test_an_action_that_kills_all_it_can_harms_itself_alone(worker: Worker) -> None:
    """Not the whole machine, which an action without isolation could: its group."""
    for number in ("TERM", "HUP"):
        script = f"sleep 1000 & trap '' {number}; kill -{number} 0; kill -9 $!; exit 4"
        finished = await worker.sh(script, inputs=INPUTS, env=PATH)
        assert (finished.failure, finished.action_result.exit_code) == (NONE, 4)


async def test_its_limits_are_for_good_and_it_leaves_no_core_file(worker: Worker) -> None:
    finished = await worker.sh("sleep 0.3; ulimit -Hc; ulimit -Hn; ulimit -Hf", inputs=INPUTS, env=PATH)
    assert (await worker.stdout(finished)).split() == ["0", "2000", str((64 << 30) // 512)]
    script = "exec >&- 2>&-; sleep 0.3; ulimit -c unlimited; kill -SEGV $$"
    finished = await worker.sh(script, inputs=INPUTS, env=PATH)
    assert finished.action_result.exit_code == 128 + signal.SIGSEGV
    assert finished.message == "killed by signal 11 (SIGSEGV)"
    assert not [path for path in worker.work_dir.rglob("core*") if stat.S_ISREG(path.lstat().st_mode)]


async def test_an_input_root_larger_than_the_cache_is_refused_with_both_sizes(
    tmp_path: Path, store: MemoryStore
) -> None:
    context = await make_context(tmp_path / "small", store, cache_max_bytes=1000)
    small = Worker(context, Inputs(store), tmp_path / "small")
    finished = await small.run("/bin/true", inputs={"a": bytes(600), "b": bytes(601)})
    assert (finished.status.code, finished.failure) == (Code.RESOURCE_EXHAUSTED, NONE)
    assert "1201 bytes" in finished.status.message
    assert "at most 1000" in finished.status.message
    context.workspace.close()
