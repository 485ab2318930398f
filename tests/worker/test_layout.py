"""An input root made from what an earlier action left is the same as one made anew, whatever that action did (behaviour 36)."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cas.digest import Digest
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker import change_time
from rexec.worker.blob_files import FileKey
from tests.worker.actions import File, Inputs, Link, Worker, make_context

Tree = Mapping[str, Any]

DESCRIBE = "find . -mindepth 1 -printf '%P %y %m %l\\n' | sort; find . -type f | sort | xargs cat; ls -A $TMPDIR; echo; ls -A .."


def headers(count: int = 12) -> dict[str, bytes]:
    return {f"{number}.h": f"header {number}\n".encode() for number in range(count)}


BASE: Tree = {
    "include": {**headers(), "deep": {"er": {"x.h": b"x\n", "tool": File(b"#!/bin/sh\n", True)}}},
    "lib": {"a.a": b"archive\n", "link": Link("a.a"), "dangling": Link("../nothing")},
    "src": {"main.c": b"int main;\n", "empty": {}},
    "top": b"top\n",
}

CHANGED: Tree = {
    "include": {**headers(11), "new.h": b"new\n", "deep": {"er": {"x.h": File(b"x\n", True), "tool": b"#!/bin/sh\n"}}},
    "lib": {"a.a": Link("link"), "link": b"now a file\n", "dangling": {"now": {"a": b"directory\n"}}},
    "src": b"now a file\n",
    "top": {"now": {"a": {"directory": b""}}},
}


@pytest_asyncio.fixture
async def fresh(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Worker]:
    """A worker that makes every input root anew."""
    context = await make_context(tmp_path / "fresh", store, reuse_input_roots=False)
    yield Worker(context, Inputs(store), tmp_path / "fresh")
    context.workspace.close()


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change times tell all, however little time has passed: as if each action came long after the last layout."""
    monkeypatch.setattr(change_time, "RACY_NS", -(1 << 62))


@pytest.fixture(params=["sure", "racy"])
def times(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both roads: trusting change times, and looking at every entry."""
    monkeypatch.setattr(change_time, "RACY_NS", -(1 << 62) if request.param == "sure" else 1 << 62)


async def seen(worker: Worker, tree: Tree | Digest, **options: Any) -> str:
    return await worker.stdout(await worker.sh(DESCRIBE, inputs=tree, **options))


async def root_inode(worker: Worker, tree: Tree) -> str:
    return await worker.stdout(await worker.sh("stat -c %i .", inputs=tree))


MISCHIEF = {
    "nothing": "true",
    "outputs": "mkdir -p out/deep; echo o > out/deep/o; echo more > include/more.h",
    "removed": "rm -rf include/deep src/main.c lib/link",
    "replaced by equal bytes": "cp include/1.h t; rm -f include/1.h; mv t include/1.h",
    "replaced by other bytes": "rm -f include/1.h; echo evil > include/1.h",
    "renamed": "mv include/1.h t; mv include/2.h include/1.h; mv t include/2.h",
    "renamed directories": "mv include t; mv lib include; mv t lib",
    "file for directory": "rm -rf src; echo evil > src",
    "directory for file": "rm -f top; mkdir -p top/in/it; echo evil > top/in/it/f",
    "symlink for directory": "mv include ../elsewhere; ln -s ../elsewhere include",
    "symlink to the outside": "rm -rf include; ln -s /etc include",
    "symlink for file": "rm -f include/1.h; ln -s /etc/passwd include/1.h",
    "other target": "rm lib/link; ln -s /etc/passwd lib/link",
    "modes": "chmod 700 include; chmod 1777 lib; chmod 000 src; chmod 2755 include/deep",
    "mode of the root": "chmod 000 .",
    "mode of the room": "chmod 000 ..",
    "sealed directories": "mkdir -p out/d; echo x > out/d/f; chmod 000 out/d out; chmod 000 include",
    "beside the root": "mkdir ../more; echo x > ../more/f; echo x > ../file; echo x > $TMPDIR/left",
    "tmpdir": "rm -rf $TMPDIR; ln -s /etc $TMPDIR",
    "special files": "mkfifo include/pipe; ln -s loop loop; rm -f top; mkfifo top",
    "hard links": "ln include/1.h include/again.h; rm -f include/2.h; ln include/3.h include/2.h",
    "root gone": "cd ..; rm -rf root",
    "root moved": "cd ..; mv root other; mkdir root; cp -r other/include root/include",
    "root a symlink": "cd ..; mv root other; ln -s other root",
    "odd names": "touch \"$(printf 'include/\\377\\n')\"; mkdir \"$(printf 'lib/\\351')\"",
    "another owner": "chown 1:1 include src 2>/dev/null; true",
    "backdated": "rm -f include/1.h; echo 'header 1' > include/1.h; touch -r include/2.h include/1.h include .",
}


@pytest.mark.parametrize("mischief", MISCHIEF.values(), ids=MISCHIEF)
@pytest.mark.parametrize("after", [BASE, CHANGED], ids=["same", "other"])
@pytest.mark.usefixtures("times")
async def test_the_next_action_sees_its_inputs_and_nothing_else(
    worker: Worker, fresh: Worker, mischief: str, after: Tree
) -> None:
    expected = await seen(fresh, after)
    await worker.sh(mischief, inputs=BASE)
    assert await seen(worker, after) == expected
    await worker.sh(mischief, inputs=after)
    assert await seen(worker, BASE) == await seen(fresh, BASE)


@pytest.mark.usefixtures("times")
async def test_an_input_root_is_really_used_again(worker: Worker) -> None:
    first = await root_inode(worker, BASE)
    assert len(worker.context.kept) == 1
    assert await root_inode(worker, {**BASE, "one.c": b"one more\n"}) == first
    assert len(worker.context.kept) == 1


async def test_nothing_is_used_again_when_that_is_switched_off(fresh: Worker) -> None:
    await fresh.sh("true", inputs=BASE)
    assert len(fresh.context.kept) == 0


@pytest.mark.usefixtures("sure")
async def test_unchanged_directories_are_not_touched(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    await worker.sh("true", inputs=BASE)
    made: list[str] = []
    link = os.link

    def counted(source: str, target: str) -> None:
        made.append(os.path.basename(target))
        link(source, target)

    monkeypatch.setattr("rexec.worker.layout.os.link", counted)
    changed = {**BASE, "src": {"main.c": b"int other;\n", "empty": {}}}
    finished = await worker.sh("cat src/main.c include/deep/er/x.h", inputs=changed)
    assert await worker.stdout(finished) == "int other;\nx\n"
    assert made == ["main.c"]


@pytest.mark.usefixtures("times")
async def test_36_a_file_that_is_changed_in_place_is_not_used_again(worker: Worker) -> None:
    spoil = "chmod u+w include/1.h; echo evil > include/1.h"
    assert (await worker.sh(spoil, inputs=BASE)).action_result.exit_code == 0
    assert len(worker.context.kept) == 0
    assert await worker.stdout(await worker.sh("cat include/1.h", inputs=BASE)) == "header 1\n"


@pytest.mark.usefixtures("times")
@pytest.mark.parametrize("link", ["out", "$TMPDIR/out", "include/deep/out"])
async def test_36_a_file_that_is_changed_through_a_link_of_the_action_is_not_used_again(
    worker: Worker, link: str
) -> None:
    for _ in range(2):  # by then nothing is looked at of which nothing is told
        await worker.sh("true", inputs=BASE)
    spoil = f"ln include/1.h {link}; chmod u+w {link}; echo evil > {link}; rm -f {link}"
    assert (await worker.sh(spoil, inputs=BASE)).action_result.exit_code == 0
    assert len(worker.context.kept) == 0
    assert await worker.stdout(await worker.sh("cat include/1.h", inputs=BASE)) == "header 1\n"


@pytest.mark.usefixtures("times")
async def test_36_a_file_that_is_overwritten_with_one_of_equal_size_time_and_mode_is_not_used_again(
    worker: Worker,
) -> None:
    spoil = "cp -p include/2.h t; chmod u+w include/1.h; cp -p t include/1.h; rm -f t"
    assert (await worker.sh(spoil, inputs=BASE)).action_result.exit_code == 0
    assert await worker.stdout(await worker.sh("cat include/1.h", inputs=BASE)) == "header 1\n"


@pytest.mark.usefixtures("times")
async def test_36_a_file_that_is_changed_through_another_room_is_made_anew_in_those_that_are_kept(
    worker: Worker, fresh: Worker
) -> None:
    await worker.sh("true", inputs=BASE)
    # Little in common, so in a room of its own, but with a file that the kept one has as well.
    other = {"1.h": b"header 1\n", **{f"other{n}": f"other {n}".encode() for n in range(20)}}
    await worker.sh("chmod u+w 1.h; echo evil > 1.h", inputs=other)
    assert len(worker.context.kept) == 1
    assert await seen(worker, BASE) == await seen(fresh, BASE)


@pytest.mark.usefixtures("times")
async def test_a_file_that_the_cache_has_let_go_is_linked_anew(worker: Worker, fresh: Worker) -> None:
    await worker.sh("true", inputs=BASE)
    key = FileKey(Digest.of(b"header 1\n"), False)
    worker.context.files.forget([key])
    # The room still has the file of old; now the cache has another one of the same bytes.
    finished = await worker.sh("stat -c %i include/1.h", inputs=BASE)
    inode = int((await worker.stdout(finished)).strip())
    assert inode == os.stat(worker.context.files.files.path(key)).st_ino
    assert await seen(worker, BASE) == await seen(fresh, BASE)


@pytest.mark.usefixtures("times")
async def test_inputs_with_times_of_their_own_are_made_anew_each_time(worker: Worker, fresh: Worker) -> None:
    properties = re_pb2.NodeProperties()
    properties.mtime.seconds = 1_000_000_000
    dated = await worker.inputs.tree(headers(), properties)
    own = {**BASE, "dated.h": File(b"d\n", properties=properties), "include": dated}
    script = "stat -c '%Y %h' dated.h include; cat dated.h; echo more >> dated.h"
    expected = await worker.stdout(await fresh.sh(script, inputs=own))
    assert "1000000000" in expected
    await worker.sh("true", inputs=BASE)
    for _ in range(2):
        assert await worker.stdout(await worker.sh(script, inputs=own)) == expected
        assert len(worker.context.kept) == 0


@pytest.mark.usefixtures("times")
async def test_output_directories_of_the_last_action_are_gone_and_those_of_this_one_are_there(worker: Worker) -> None:
    script = "find . -path './bin*' | sort; mkdir -p bin/x; echo o > bin/x/o"
    for package in ("a", "b", "a"):
        finished = await worker.sh(script, inputs=BASE, output_paths=[f"bin/{package}/o", "bin/x"])
        assert await worker.stdout(finished) == f"./bin\n./bin/{package}\n"
        assert len(finished.action_result.output_directories) == 1


async def test_a_room_that_was_of_no_use_to_an_action_stays_for_others(worker: Worker) -> None:
    first = await root_inode(worker, BASE)
    await worker.sh("true", inputs={f"{n}": f"unlike {n}".encode() for n in range(30)})
    assert len(worker.context.kept) == 2
    assert await root_inode(worker, BASE) == first


async def test_no_more_rooms_are_kept_than_there_are_places_for_actions(worker: Worker) -> None:
    for number in range(5):
        await worker.sh("true", inputs={f"{n}": f"{number} {n}".encode() for n in range(30)})
    assert len(worker.context.kept) == worker.context.settings.slots + worker.context.settings.prefetch_leases == 3
    assert len(os.listdir(worker.work_dir / "w")) == 3
    worker.context.kept.drop_all()
    assert os.listdir(worker.work_dir / "w") == []


async def test_rooms_do_not_keep_what_the_cache_has_deleted(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(tmp_path / "small", store, cache_max_bytes=20_000)
    small = Worker(context, Inputs(store), tmp_path / "small")
    first = {f"a{n}": b"%1000d" % n for n in range(8)}
    second = {f"b{n}": b"%1000d" % -n for n in range(1, 9)}
    await small.sh("true", inputs=first)
    await small.sh("true", inputs=second)
    assert len(context.kept) == 2
    await small.sh("true", inputs={"large": bytes(5_000)})
    kept = [frozenset().union(*[bundle.keys for bundle in layout.bundles.values()]) for _, layout in context.kept._kept]
    assert kept == [{FileKey(Digest.of(data), False) for data in second.values()}]
    assert await small.stdout(await small.sh("cat b3", inputs=second)) == second["b3"].decode()
    context.workspace.close()


async def test_nothing_is_kept_on_a_disk_that_is_nearly_full(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.context.workspace, "free_bytes", lambda: 100 << 20)
    await worker.sh("true", inputs=BASE)
    assert len(worker.context.kept) == 0


async def test_a_full_disk_takes_what_is_kept(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    await worker.sh("true", inputs=BASE)
    assert len(worker.context.kept) == 1

    def full(_path: str) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("rexec.worker.layout.os.mkdir", full)
    finished = await worker.run("/bin/true", inputs={"d": {}})
    assert finished.failure == worker_pb2.Finished.INFRASTRUCTURE
    assert len(worker.context.kept) == 0


@pytest.mark.usefixtures("sure")
async def test_attributes_of_a_directory_are_not_handed_on(worker: Worker, fresh: Worker) -> None:
    # The change time tells that something happened, and a look at the directory what.
    script = "import os\nos.setxattr('include', 'user.note', b'mine')\nos.mkdir('include/more')\n"
    python = {**BASE, "note.py": script.encode()}
    path = {"PATH": os.environ["PATH"]}
    assert (await worker.sh("exec python3 note.py", inputs=python, env=path)).action_result.exit_code == 0
    listed = await worker.sh("exec python3 -c 'import os; print(os.listxattr(\"include\"))'", inputs=python, env=path)
    assert await worker.stdout(listed) == "[]\n"
    assert await seen(worker, BASE) == await seen(fresh, BASE)


async def test_a_room_with_attributes_is_not_kept(worker: Worker) -> None:
    tree = {**BASE, "note.py": b"import os; os.setxattr('..', 'user.note', b'mine')"}
    finished = await worker.sh("exec python3 note.py", inputs=tree, env={"PATH": os.environ["PATH"]})
    assert finished.action_result.exit_code == 0
    assert len(worker.context.kept) == 0


@pytest.mark.usefixtures("times")
async def test_random_trees_one_after_the_other_are_each_what_they_say(worker: Worker, fresh: Worker) -> None:
    dice = random.Random(4)

    def node(depth: int) -> Any:
        kind = dice.random()
        if depth and kind < 0.35:
            return {f"n{dice.randrange(6)}": node(depth - 1) for _ in range(dice.randrange(6))}
        if kind < 0.45:
            return Link(dice.choice(["n1", "../n2", "/etc", "nowhere"]))
        return File(b"%d" % dice.randrange(8), dice.random() < 0.3)

    for _ in range(25):
        tree = {**{f"base{n}": b"base %d" % n for n in range(20)}, **{f"n{n}": node(3) for n in range(6)}}
        vandal = dice.choice(["true", "rm -rf n1 n2", "touch n3/x; mkdir -p n4/y", "rm -f base3; ln -s n1 base3"])
        finished = await worker.sh(f"{DESCRIBE.split(';')[0]}; {vandal}", inputs=tree)
        expected = await fresh.sh(f"{DESCRIBE.split(';')[0]}", inputs=tree)
        said = (await worker.read(finished.action_result.stdout_digest)).decode()
        assert said == await fresh.stdout(expected)
