"""Control groups for actions: where they are made, what they are told, and that all is left as it was found."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cas.errors import Code
from cas.memory import MemoryStore
from protos.rexec.scheduler.v1 import record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import ActionContext
from rexec.worker.bound import Bound
from rexec.worker.control_groups import NO_GROUP, ActionGroups, ControlGroups, NotDelegated, claim, claimed
from rexec.worker.oom import OomWatch
from rexec.worker.processes import Processes
from rexec.worker.settings import MemoryLimit
from rexec.worker.start import runner_of
from tests.worker.actions import Inputs, Worker, make_context
from tests.worker.control_group_tree import GroupTree

MIB = 1 << 20
PATH = {"PATH": os.environ["PATH"]}


@pytest.fixture
def other() -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.kill()
    process.communicate()


@pytest.fixture
def tree(tmp_path: Path) -> GroupTree:
    return GroupTree(tmp_path / "machine")


async def bounded(work: Path, store: MemoryStore, groups: ActionGroups, **changes: object) -> Worker:
    """A worker of two slots with 400 MiB."""
    context: ActionContext = await make_context(work, store, resources={"memory": 400 * MIB}, **changes)
    context.runner = runner_of(context.settings, Processes(), context.workspace, groups)
    return Worker(context, Inputs(store), work)


def test_the_agent_moves_aside_so_that_actions_can_be_bounded_and_back_at_the_end(tree: GroupTree) -> None:
    groups = claim(tree.root, tree)
    assert tree.processes(tree.own) == set()
    assert tree.processes(tree.own / "agent") == {os.getpid()}
    assert (tree.own / "cgroup.subtree_control").read_text() == "memory"
    groups.close()
    assert tree.processes(tree.own) == {os.getpid()}
    assert (tree.own / "cgroup.subtree_control").read_text() == ""
    assert not (tree.own / "agent").exists()


def test_an_action_gets_its_bound_no_swap_and_ends_as_one(tree: GroupTree) -> None:
    groups = claim(tree.root, tree)
    group = groups.group(300 * MIB)
    [path] = tree.actions()
    told = {name: (path / name).read_text() for name in ("memory.max", "memory.swap.max", "memory.oom.group")}
    assert told == {"memory.max": str(300 * MIB), "memory.swap.max": "0", "memory.oom.group": "1"}
    assert not group.end()
    assert tree.actions() == []
    groups.group(0)
    [path] = tree.actions()
    assert (path / "memory.max").read_text() == "max\n"
    groups.close()


def test_a_kernel_without_swap_is_told_the_rest(tmp_path: Path) -> None:
    tree = GroupTree(tmp_path, swap=False)
    claim(tree.root, tree).group(MIB)
    [path] = tree.actions()
    assert (path / "memory.max").read_text() == str(MIB)


@pytest.mark.parametrize(
    ("events", "is_excess"),
    [
        ({"oom": 1, "oom_kill": 2}, True),
        ({"oom": 0, "oom_kill": 1}, False),  # the machine ran out of memory
        ({"oom": 3, "oom_kill": 0}, False),  # an allocation failed, and the program has lived with that
    ],
)
def test_only_a_kill_at_the_actions_own_bound_is_its_excess(
    tree: GroupTree, events: dict[str, int], is_excess: bool
) -> None:
    group = claim(tree.root, tree).group(MIB)
    tree.count(tree.actions()[0], **events)
    assert group.end() is is_excess


def test_a_group_that_still_has_processes_is_removed_later(tree: GroupTree, other: int) -> None:
    groups = claim(tree.root, tree)
    group = groups.group(MIB)
    group.take(other)
    first = tree.actions()[0]
    assert tree.processes(first) == {other}
    group.end()
    assert first.exists()
    tree.write(tree.own / "agent" / "cgroup.procs", str(other))
    groups.group(MIB)
    assert not first.exists()


def test_what_a_process_has_started_before_it_was_moved_is_moved_too(tree: GroupTree) -> None:
    script = "import os; [os.fork() for _ in range(3)]; print(flush=True); os.read(0, 1)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    for _ in range(8):
        parent.stdout.readline()
    group = claim(tree.root, tree).group(MIB)
    group.take(parent.pid)
    taken = tree.processes(tree.actions()[0])
    assert len(taken) == 8
    group.kill()
    assert set(tree.killed) == taken
    parent.communicate()


def test_what_an_agent_that_was_killed_has_left_is_ended(tree: GroupTree, other: int) -> None:
    for name in ("agent", "action-0"):
        tree.make(tree.own / name)
    tree.write(tree.own / "action-0" / "cgroup.procs", str(other))
    claim(tree.root, tree)
    assert tree.killed == [other]
    assert tree.actions() == []


def test_another_agent_in_the_same_group_is_left_alone(tree: GroupTree, other: int) -> None:
    tree.make(tree.own / "agent")
    tree.write(tree.own / "agent" / "cgroup.procs", str(other))
    with pytest.raises(NotDelegated, match=f"process {other}"):
        claim(tree.root, tree)
    assert tree.processes(tree.own / "agent") == {other}
    assert tree.processes(tree.own) == {os.getpid()}


def test_other_processes_in_the_group_are_not_moved(tree: GroupTree, other: int) -> None:
    tree.write(tree.own / "cgroup.procs", str(other))
    with pytest.raises(NotDelegated, match=f"other processes .*{other}"):
        claim(tree.root, tree)
    assert not (tree.own / "agent").exists()
    assert tree.processes(tree.own) == {os.getpid(), other}


def test_without_the_memory_controller_there_are_no_groups(tmp_path: Path) -> None:
    tree = GroupTree(tmp_path, controllers="cpu hugetlb")
    with pytest.raises(NotDelegated, match="no memory controller"):
        claim(tree.root, tree)
    assert [path for path in tree.own.iterdir() if path.is_dir()] == []


def test_the_root_of_the_machine_is_nobodys(tree: GroupTree) -> None:
    (tree.own / "cgroup.type").unlink()
    with pytest.raises(NotDelegated, match="root of all control groups"):
        claim(tree.root, tree)


def test_a_group_that_is_only_threads_is_of_no_use(tree: GroupTree) -> None:
    (tree.own / "cgroup.type").write_text("threaded\n")
    with pytest.raises(NotDelegated, match="type threaded"):
        claim(tree.root, tree)


def test_a_group_below_the_top_is_roots_only_where_systemd_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = GroupTree(tmp_path, path="/system.slice/rexec.service")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NotDelegated, match="Delegate="):
        claim(tree.root, tree)
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1" if name == "trusted.delegate" else b"0")
    assert claim(tree.root, tree).group(MIB) is not NO_GROUP


def test_a_user_owns_what_he_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = GroupTree(tmp_path, path="/user.slice/rexec.service")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    claim(tree.root, tree).close()
    monkeypatch.setattr(os, "access", lambda path, mode: path != tree.own / "cgroup.subtree_control")
    with pytest.raises(NotDelegated, match="not writable"):
        claim(tree.root, tree)


@pytest.mark.parametrize("line", ["", "4:memory:/pod\n", "0::/../pod\n", "0::/nowhere\n"])
def test_a_group_that_cannot_be_seen_is_not_delegated(tree: GroupTree, line: str) -> None:
    Path(tree.root, "proc/self/cgroup").write_text(line)
    with pytest.raises(NotDelegated):
        claim(tree.root, tree)


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\x0bb\x1cc", b"a\xc2\x85b", b"with space", b"0::"])
def test_a_group_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    """But for line feeds, which the kernel does not allow."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    tree = GroupTree(tmp_path, path=f"/{os.fsdecode(name)}")
    groups = claim(tree.root, tree)
    assert tree.processes(tree.own / "agent") == {os.getpid()}
    groups.close()
    (tree.own / "cgroup.type").write_text("threaded\n")
    assert claimed(True, tree.root, tree).group(MIB) is NO_GROUP


def test_a_kernel_that_refuses_leaves_the_agent_where_it_was(tree: GroupTree, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tree.write

    def refuse(path: Path, text: str) -> None:
        if text == "+memory":
            raise OSError(22, "Invalid argument")
        write(path, text)

    monkeypatch.setattr(tree, "write", refuse)
    with pytest.raises(NotDelegated, match="Invalid argument"):
        claim(tree.root, tree)
    assert tree.processes(tree.own) == {os.getpid()}
    assert not (tree.own / "agent").exists()


def test_they_can_be_switched_off_and_are_not_needed(tree: GroupTree) -> None:
    assert claimed(False, tree.root, tree).group(MIB) is NO_GROUP
    assert not (tree.own / "agent").exists()
    assert isinstance(claimed(True, tree.root, tree), ControlGroups)
    assert claimed(True, f"{tree.root}/nowhere").group(MIB) is NO_GROUP


def test_on_this_machine_it_is_found_out_whether_there_are_any() -> None:
    before = Path("/proc/self/cgroup").read_text()
    groups = claimed(True)
    try:
        group = groups.group(MIB)
        assert (group is NO_GROUP) == (not isinstance(groups, ControlGroups))
        assert not group.end()
    finally:
        groups.close()
    assert Path("/proc/self/cgroup").read_text() == before


def _sleeps(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep")
    except OSError:
        return False


@pytest.mark.parametrize("isolation", ["none", "landlock", "bubblewrap"])
async def test_an_action_killed_by_the_kernel_is_told_as_one_killed_by_the_worker(
    tmp_path: Path, store: MemoryStore, tree: GroupTree, isolation: str
) -> None:
    worker = await bounded(tmp_path / "work", store, claim(tree.root, tree), isolation=isolation)
    counter = tmp_path / "memory.events"
    counter.write_text("oom_kill 0\n")
    worker.context.oom = OomWatch((counter,))
    running = asyncio.create_task(worker.sh("echo so far; exec sleep 1000", env=PATH))
    async with asyncio.timeout(30):
        # Until the command is in it: in bubblewrap others are before it, and a sandbox that is half made is not tried here.
        while not (tree.actions() and any(map(_sleeps, tree.processes(tree.actions()[0])))):
            await asyncio.to_thread(lambda: None)
        [path] = tree.actions()
        assert (path / "memory.max").read_text() == str(200 * MIB)
        tree.count(path, oom=1, oom_kill=1)
        counter.write_text("oom_kill 1\n")
        tree.write(path / "cgroup.kill", "1")
        finished = await running
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, worker_pb2.Finished.NONE)
    assert finished.message == finished.status.message == "killed: 200 MiB, slot 200 MiB"
    assert finished.exceeded_memory_bytes == 200 * MIB
    assert tree.actions() == []
    # It was the action's own kill: another that fails has failed.
    assert (await worker.sh("exit 1", env=PATH)).action_result.exit_code == 1
    worker.context.workspace.close()


async def test_an_action_that_is_over_at_once_needs_no_group(tree: GroupTree, other: int) -> None:
    bound = Bound(claim(tree.root, tree), MIB)
    bound.began(other)
    await bound.ended()
    assert not bound.left()
    assert not tree.actions()
    assert not tree.limits


async def test_the_bound_is_what_the_action_asked_for_and_none_where_there_is_memory(
    tmp_path: Path, store: MemoryStore, tree: GroupTree
) -> None:
    groups = claim(tree.root, tree)
    worker = await bounded(tmp_path / "work", store, groups)
    for demand in (None, record_pb2.Demand(slots=1, memory_bytes=300 * MIB)):
        assert (await worker.sh("sleep 0.3; exit 3", env=PATH, demand=demand)).action_result.exit_code == 3
    free = await bounded(tmp_path / "free", store, groups, memory_limit=MemoryLimit.MACHINE)
    await free.sh("setsid sleep 1000 & sleep 0.3", env=PATH)
    assert tree.actions() == []
    assert [limits["memory.max"] for limits in tree.limits] == [str(200 * MIB), str(300 * MIB), "max"]
    assert len(tree.killed) == 1, "the daemon that was left"
    for some in (worker, free):
        some.context.workspace.close()
