"""What an action finds in its input root (behaviours 3, 4, 24, 34, 36, 37, 39)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from cas.digest import Digest
from cas.errors import Code, DigestMismatch
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.blob_files import INPUT_MTIME_SECONDS, FileKey
from tests.worker.actions import File, Inputs, Link, Worker, make_context


def subjects(finished: worker_pb2.Finished) -> list[str]:
    failure = error_details_pb2.PreconditionFailure()
    assert finished.status.details[0].Unpack(failure)
    assert {violation.type for violation in failure.violations} == {"MISSING"}
    return sorted(violation.subject for violation in failure.violations)


async def test_the_input_root_is_what_the_tree_says(worker: Worker) -> None:
    finished = await worker.sh(
        "find . -printf '%P %y %m %l\\n' | sort; cat d/big | wc -c",
        inputs={
            "f": b"1",
            "x": File(b"#!/bin/sh\n", True),
            "l": Link("d/f"),
            "abs": Link("/etc"),
            "empty": {},
            "none": b"",
            "d": {"f": b"2", "big": bytes(3_000_000), "ü": b""},
        },
    )
    assert (await worker.stdout(finished)).split("\n") == [
        " d 755 ", "abs l 777 /etc", "d d 755 ", "d/big f 444 ", "d/f f 444 ", "d/ü f 444 ", "empty d 755 ", "f f 444 ",
        "l l 777 d/f", "none f 444 ", "x f 555 ", "3000000", "",
    ]  # fmt: skip


async def test_1_3_all_missing_blobs_are_told_at_once(worker: Worker) -> None:
    gone = [Digest.of(data) for data in (b"gone 1", b"gone 2", b"x" * 2_000_000)]
    missing_directory = Digest.of(b"no such directory")
    finished = await worker.run(
        "/bin/true",
        inputs={
            "a": File(b"gone 1", in_store=False),
            "there": b"there",
            "d": {"b": File(b"gone 2", True, in_store=False), "c": File(b"x" * 2_000_000, in_store=False)},
            "sub": missing_directory,
        },
    )
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, worker_pb2.Finished.NONE)
    assert subjects(finished) == sorted(digest.blob_name() for digest in [*gone, missing_directory])


async def test_3_files_alone_missing_are_told_at_once(worker: Worker) -> None:
    names = {str(n): File(f"gone {n}".encode(), in_store=False) for n in range(50)}
    finished = await worker.run("/bin/true", inputs=names)
    assert len(subjects(finished)) == 50


async def test_1_a_missing_root_is_told_the_same_way(worker: Worker) -> None:
    root = Digest.of(b"nothing here")
    assert subjects(await worker.run("/bin/true", inputs=root)) == [root.blob_name()]


async def test_4_an_input_that_vanishes_between_check_and_fetch_is_missing(worker: Worker) -> None:
    lease_root = await worker.inputs.tree({"a": b"here for now", "d": {"b": b"stays"}})
    gone = Digest.of(b"here for now")
    original = worker.store.read_many

    async def vanishing(digests: Sequence[Digest]) -> dict[Digest, bytes]:
        return {digest: data for digest, data in (await original(digests)).items() if digest != gone}

    worker.store.read_many = vanishing  # type: ignore[method-assign]
    assert subjects(await worker.run("/bin/true", inputs=lease_root)) == [gone.blob_name()]


async def test_wrong_bytes_from_the_store_are_the_workers_trouble(worker: Worker) -> None:
    root = await worker.inputs.tree({"a": b"right"})
    worker.store.blobs[Digest.of(b"right")] = b"wrong"
    finished = await worker.run("/bin/true", inputs=root)
    assert finished.failure == worker_pb2.Finished.INFRASTRUCTURE
    assert FileKey(Digest.of(b"right"), False) not in worker.context.files


async def test_34_times_and_modes_of_inputs_are_applied_to_private_copies(worker: Worker) -> None:
    properties = re_pb2.NodeProperties()
    properties.mtime.seconds, properties.mtime.nanos = 1_000_000_000, 250_000_000
    properties.unix_mode.value = 0o640
    script = "stat -c '%n %a %Y %h' a b d; cat a b"
    finished = await worker.sh(
        script,
        inputs={
            "a": File(b"same", properties=properties),
            "b": b"same",
            "d": await worker.inputs.tree({"f": b""}, re_pb2.NodeProperties(mtime=properties.mtime)),
        },
    )
    assert (await worker.stdout(finished)).split("\n")[:3] == [
        "a 640 1000000000 1",
        f"b 444 {INPUT_MTIME_SECONDS} 2",
        "d 755 1000000000 2",
    ]


async def test_34_an_unknown_property_of_inputs_is_refused(worker: Worker) -> None:
    odd = re_pb2.NodeProperties(properties=[re_pb2.NodeProperty(name="colour", value="red")])
    finished = await worker.run("/bin/true", inputs={"a": File(b"", properties=odd)})
    assert finished.status.code == Code.INVALID_ARGUMENT
    assert "colour" in finished.status.message


async def test_34_buildstreams_hint_on_directories_is_tolerated(worker: Worker) -> None:
    hint = re_pb2.NodeProperties(properties=[re_pb2.NodeProperty(name="SubtreeReadOnly", value="true")])
    root = await worker.inputs.tree({"f": b"x"}, hint)
    assert await worker.stdout(await worker.sh("cat f", inputs=root)) == "x"


async def test_36_an_action_that_rewrites_its_inputs_spoils_nothing(worker: Worker) -> None:
    inputs = {"a": b"original", "b": File(b"script", True), "c": b"touched", "d": b"gone", "e": b"left alone"}
    rewriting = "chmod u+w a b; echo spoiled > a; echo spoiled >> b; touch c; rm -f d; chmod 777 .; cat e"
    root = await worker.inputs.tree(inputs)
    assert (await worker.sh(rewriting, inputs=root)).action_result.exit_code == 0
    finished = await worker.sh("cat a b c d e", inputs=root)
    assert await worker.stdout(finished) == "originalscripttouchedgoneleft alone"
    for data in (b"original", b"script"):
        assert worker.store.blobs[Digest.of(data)] == data


async def test_36_an_action_that_is_cancelled_after_it_rewrote_its_inputs_spoils_nothing(
    worker: Worker, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    root = await worker.inputs.tree({"a": b"original"})
    lease = await worker.lease(
        "/bin/sh", "-c", f"chmod u+w a; echo spoiled > a; echo > {ready}; sleep 1000", inputs=root
    )
    task = asyncio.create_task(LeasedAction(worker.context, lease, lambda *_: None).run())
    async with asyncio.timeout(20):
        await asyncio.to_thread(ready.read_bytes)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await worker.stdout(await worker.sh("cat a", inputs=root)) == "original"


async def test_36_who_read_an_input_that_another_rewrote_is_run_again(worker: Worker, tmp_path: Path) -> None:
    ready, go_on = tmp_path / "ready", tmp_path / "go_on"
    os.mkfifo(ready)
    os.mkfifo(go_on)
    root = await worker.inputs.tree({"a": b"original"})
    victim = asyncio.create_task(worker.sh(f"echo > {ready}; read line < {go_on}; cat a", inputs=root))
    rewriting = await worker.lease("/bin/sh", "-c", "chmod u+w a; echo spoiled > a", inputs=root)
    rewriting.action_digest.hash = "rewriting"
    async with asyncio.timeout(20):
        await asyncio.to_thread(ready.read_bytes)
        first = await LeasedAction(worker.context, rewriting, lambda *_: None).run()
        # A third one fetches the file anew, which must not hide what happened.
        assert await worker.stdout(await worker.sh("cat a", inputs=root)) == "original"
        await asyncio.to_thread(go_on.write_text, "\n")
        failed = await victim
    assert [first.failure, failed.failure] == [worker_pb2.Finished.INFRASTRUCTURE] * 2
    assert "input files were changed" in failed.message
    # The one that does it always gets copies from then on, and is in nobody's way.
    victim = asyncio.create_task(worker.sh(f"echo > {ready}; read line < {go_on}; cat a", inputs=root))
    async with asyncio.timeout(20):
        await asyncio.to_thread(ready.read_bytes)
        again = await LeasedAction(worker.context, rewriting, lambda *_: None).run()
        await asyncio.to_thread(go_on.write_text, "\n")
        assert await worker.stdout(await victim) == "original"
    assert (again.failure, again.action_result.exit_code) == (worker_pb2.Finished.NONE, 0)


@pytest.mark.parametrize("count", [1, 20], ids=["in a new room", "in a kept room"])
async def test_36_an_input_that_was_changed_between_two_actions_is_never_read(worker: Worker, count: int) -> None:
    root = await worker.inputs.tree({f"{number}": b"original %d" % number for number in range(count)})
    await worker.sh("true", inputs=root)
    path = worker.context.files.files.path(FileKey(Digest.of(b"original 0"), False))
    os.chmod(path, 0o644)
    Path(path).write_bytes(b"spoilt")  # noqa: ASYNC240
    failed = await worker.sh("cat 0; false", inputs=root)
    assert failed.failure == worker_pb2.Finished.INFRASTRUCTURE
    assert "1 input files were changed before the action began" in failed.message
    assert worker_pb2.Progress.RUNNING not in worker.phases[worker.phases.index(worker_pb2.Progress.UPLOADING) :]
    assert await worker.stdout(await worker.sh("cat 0", inputs=root)) == "original 0"


async def test_36_one_digest_executable_and_not_is_two_files(worker: Worker) -> None:
    data = b"#!/bin/sh\necho ran\n"
    finished = await worker.sh(
        "./run; test -x data || echo plain; stat -c %a run data", inputs={"run": File(data, True), "data": data}
    )
    assert await worker.stdout(finished) == "ran\nplain\n555\n444\n"


async def test_36_a_large_digest_used_both_ways_is_fetched_once(worker: Worker) -> None:
    opened: list[Digest] = []
    original = worker.store.open
    data = bytes(2_000_000)

    def counted(digest: Digest, offset: int = 0, limit: int | None = None) -> object:
        opened.append(digest)
        return original(digest, offset, limit)

    worker.store.open = counted  # type: ignore[method-assign,assignment]
    root = await worker.inputs.tree({"a": data, "b": File(data, True)})
    finished = await worker.sh("stat -c %a a b", inputs=root)
    assert len(opened) == 1
    worker.store.open = original  # type: ignore[method-assign]
    assert await worker.stdout(finished) == "444\n555\n"


async def test_36_executables_that_arrive_while_others_start_are_not_busy(worker: Worker) -> None:
    async def one(number: int) -> int:
        script = f"#!/bin/sh\nexit 0\n# {number}\n".encode()
        return (await worker.run("./tool", inputs={"tool": File(script, True)})).action_result.exit_code

    finished = await asyncio.gather(*(one(number) for number in range(40)))
    assert finished == [0] * 40


async def test_37_equal_inputs_are_one_file(worker: Worker) -> None:
    finished = await worker.sh("stat -c %i a b | uniq | wc -l", inputs={"a": b"#pragma once", "b": b"#pragma once"})
    assert (await worker.stdout(finished)).strip() == "1"


async def test_39_the_empty_blob_need_not_be_in_the_store(worker: Worker) -> None:
    finished = await worker.sh("wc -c < a; test -x b && echo x", inputs={"a": File(b"", in_store=False),
                                                                        "b": File(b"", True, in_store=False)})  # fmt: skip
    assert await worker.stdout(finished) == "0\nx\n"


async def test_inputs_that_do_not_fit_the_cache_are_a_clear_failure(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(tmp_path / "small", store, cache_max_bytes=1000)
    small = Worker(context, Inputs(store), tmp_path / "small")
    finished = await small.run("/bin/true", inputs={"a": bytes(600), "b": bytes(601)})
    assert (finished.status.code, finished.failure) == (Code.RESOURCE_EXHAUSTED, worker_pb2.Finished.NONE)
    assert "1201 bytes" in finished.status.message
    assert "at most 1000" in finished.status.message
    assert (await small.run("/bin/true", inputs={"a": bytes(600)})).action_result.exit_code == 0
    context.workspace.close()


async def test_an_input_in_the_way_of_an_output_directory_is_refused(worker: Worker) -> None:
    finished = await worker.run("/bin/true", inputs={"a": b""}, output_paths=["a/b/c"])
    assert finished.status.code == Code.INVALID_ARGUMENT


async def test_a_tree_deeper_than_a_path_is_refused(worker: Worker) -> None:
    content: dict[str, object] = {"f": b""}
    for _ in range(30):
        content = {"n" * 200: content}
    finished = await worker.run("/bin/true", inputs=content)
    assert finished.status.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["..", "a/b", ""])
async def test_names_that_leave_the_directory_are_refused(worker: Worker, name: str) -> None:
    directory = re_pb2.Directory(files=[re_pb2.FileNode(name=name, digest=(await worker.inputs.put(b"x")).to_proto())])
    root = await worker.inputs.put(directory.SerializeToString())
    finished = await worker.run("/bin/true", inputs=root)
    assert (finished.status.code, finished.failure) == (Code.INVALID_ARGUMENT, worker_pb2.Finished.NONE)


async def test_a_full_disk_is_no_fault_of_the_action(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_path: str, _mode: int = 0o777) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("rexec.worker.layout.os.mkdir", full)
    finished = await worker.run("/bin/true", inputs={"d": {}})
    assert finished.failure == worker_pb2.Finished.INFRASTRUCTURE
    # Should it be so on every worker that is tried, then no client comes back for more.
    assert finished.status.code == Code.FAILED_PRECONDITION
    assert "disk is full" in finished.status.message


async def test_a_wrong_directory_from_the_store_is_the_workers_trouble(worker: Worker) -> None:
    root = await worker.inputs.tree({"a": b"x"})

    async def wrong(digests: Sequence[Digest]) -> dict[Digest, bytes]:
        raise DigestMismatch(digests[0], "something else")

    worker.store.read_many = wrong  # type: ignore[method-assign]
    finished = await worker.run("/bin/true", inputs=root)
    assert finished.failure == worker_pb2.Finished.INFRASTRUCTURE
