"""Actions in bubblewrap: what they see and reach, how their end is told, and that nothing of them remains."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cas.errors import Code
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import LeasedAction
from rexec.worker.bubblewrap import Bubblewrap
from rexec.worker.bubblewrap_settings import BubblewrapSettings, RootKind
from rexec.worker.isolation import CannotIsolate
from rexec.worker.process_table import all_processes
from tests.worker.actions import File, Inputs, Link, Worker, make_context

NONE = worker_pb2.Finished.NONE
INFRASTRUCTURE = worker_pb2.Finished.INFRASTRUCTURE
ROOT = Path(__file__).parents[2]
BUSYBOX = Path("/bin/busybox")


@pytest_asyncio.fixture
async def worker(tmp_path: Path, store: MemoryStore) -> AsyncIterator[Worker]:
    context = await make_context(tmp_path / "work", store, stdout_max_bytes=1 << 20, isolation="bubblewrap")
    yield Worker(context, Inputs(store), tmp_path / "work")
    context.workspace.close()


@pytest.fixture
def system() -> dict[str, Any]:
    """A small root file system."""
    if not BUSYBOX.exists():
        raise AssertionError(f"{BUSYBOX} is not installed: run `make clients`")
    links = {
        name: Link("busybox")
        for name in ("cat", "chmod", "env", "id", "ls", "mkdir", "readlink", "rm", "touch", "true")
    }
    # An absolute link: it leads to the one in here, whatever the machine has.
    links["sh"] = Link("/usr/busybox")
    return {"bin": {"busybox": File(BUSYBOX.read_bytes(), True), **links}, "usr": Link("bin")}


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


def platform(**properties: str) -> re_pb2.Platform:
    return re_pb2.Platform(
        properties=[re_pb2.Platform.Property(name=name, value=value) for name, value in properties.items()]
    )


def descendants() -> set[int]:
    """Of this process, alive."""
    table = all_processes()
    found, added = {os.getpid()}, True
    while added:
        more = {pid for pid, process in table.items() if process.parent in found and not process.is_dead} - found
        found |= more
        added = bool(more)
    return found - {os.getpid()}


def arguments_of(pid: int) -> bytes:
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as arguments:
        return arguments.read()
    return b""


async def test_a_command_runs_with_its_streams_outputs_and_exit_code(worker: Worker) -> None:
    finished = await worker.sh(
        "echo out; echo err >&2; cat a/in > b/out; exit 3", inputs={"a": {"in": b"x"}}, output_paths=["b/out", "never"]
    )
    result = finished.action_result
    assert (finished.status.code, finished.failure, result.exit_code) == (0, NONE, 3)
    assert await worker.read(result.stdout_digest) == b"out\n"
    assert await worker.read(result.stderr_digest) == b"err\n"
    assert await worker.outputs(finished) == {"b/out": b"x"}
    assert list((worker.work_dir / "w").iterdir()) == []


async def test_the_environment_is_the_commands_and_bwrap_does_not_obey_it(worker: Worker, tmp_path: Path) -> None:
    finished = await worker.run(
        "env", env={"PATH": "/usr/bin", "LD_PRELOAD": f"{tmp_path}/no-such.so", "EMPTY": "", "LD_DEBUG": "libs"}
    )
    variables = dict(line.split("=", 1) for line in (await worker.stdout(finished)).splitlines())
    assert variables.pop("PWD").endswith("/root")
    assert variables == {
        "PATH": "/usr/bin", "TMPDIR": "/tmp", "LD_PRELOAD": f"{tmp_path}/no-such.so", "EMPTY": "", "LD_DEBUG": "libs",
    }  # fmt: skip
    assert b"bwrap" not in await worker.read(finished.action_result.stderr_digest)


async def test_others_on_the_machine_cannot_read_the_variables(worker: Worker) -> None:
    task = asyncio.create_task(worker.run("sleep", "1000", env={"PATH": "/usr/bin", "TOKEN": "s3cret"}))
    before = set(descendants())
    async with asyncio.timeout(30):
        while not any(b"sleep" in arguments_of(pid) for pid in descendants() - before):
            await asyncio.to_thread(lambda: None)
    shown = b"".join(map(arguments_of, descendants() - before))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert b"1000" in shown
    assert b"s3cret" not in shown


@pytest.mark.parametrize("name", ["/bin/echo", "echo", "tools/say", "./tools/say"])
async def test_the_program_is_absolute_or_relative_or_looked_up(worker: Worker, name: str) -> None:
    say = {"say": File(b'#!/bin/sh\necho "$@"\n', True)}
    finished = await worker.run(name, "hello", inputs={"pkg": {"tools": say}}, working_directory="pkg")
    assert await worker.stdout(finished) == "hello\n"


async def test_a_script_without_an_interpreter_line_is_run_by_sh(worker: Worker) -> None:
    finished = await worker.run("./say", "x", inputs={"say": File(b"echo said $1\n", True)})
    assert await worker.stdout(finished) == "said x\n"


async def test_what_cannot_be_executed_is_the_clients_fault(worker: Worker, tmp_path: Path) -> None:
    hidden = tmp_path / "tool"
    hidden.write_text("#!/bin/sh\n")
    hidden.chmod(0o755)
    lost = {"say": File(b"#!/no/such/interpreter\n", True)}
    for finished in (await worker.run("./say", inputs=lost), await worker.run(str(hidden))):
        assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
        assert "No such file" in finished.status.message


async def test_more_arguments_than_bwrap_takes_are_refused(worker: Worker) -> None:
    finished = await worker.run("true", *["x"] * 9000)
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert "response file" in finished.status.message
    assert (await worker.run("true", *["x"] * 8800)).action_result.exit_code == 0


@pytest.mark.parametrize("said", ["echo 'bwrap: Creating new namespace failed: No space left on device' >&2", ""])
async def test_a_world_that_cannot_be_made_is_the_workers_fault(worker: Worker, tmp_path: Path, said: str) -> None:
    isolation = worker.context.isolation
    assert isinstance(isolation, Bubblewrap)
    isolation._program = "/no/such/bwrap"
    gone = await worker.run("true")
    assert (gone.failure, gone.HasField("action_result")) == (INFRASTRUCTURE, False)
    assert "/no/such/bwrap" in gone.message
    failing = tmp_path / "bwrap"
    failing.write_text(f"#!/bin/sh\n{said}\nexit 1\n")
    failing.chmod(0o755)
    isolation._program = str(failing)
    failed = await worker.run("true")
    assert (failed.failure, failed.HasField("action_result")) == (INFRASTRUCTURE, False)
    assert ("No space left" if said else "could not run") in failed.message


async def test_outside_of_the_input_root_nothing_is_seen(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    finished = await worker.sh(
        f"cat {tmp_path}/secret /etc/shadow; ls {worker.work_dir} {worker.work_dir}/cache; ls -d /home /root /sys /run; true"
    )
    assert await worker.stdout(finished) == "w\n".replace("w", f"{worker.work_dir}:\nw")


async def test_nothing_outside_can_be_written(worker: Worker, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    finished = await worker.sh(
        "for path in /usr/x /etc/x /x /proc/sys/x /lib/x; do (echo x > $path) 2>/dev/null && echo $path; done; "
        f"echo x > {outside}; echo x > {worker.work_dir}/outside; "
        "mount -o remount,rw /usr 2>/dev/null && echo remounted; echo x > $TMPDIR/mine && cat /tmp/mine"
    )
    assert await worker.stdout(finished) == "x\n"
    assert not outside.exists()
    assert not (worker.work_dir / "outside").exists()


async def test_the_directories_of_the_agent_are_hidden_where_the_machine_shows_them(
    tmp_path: Path, store: MemoryStore
) -> None:
    shown = tmp_path / "shown"
    (shown / "tool").mkdir(parents=True)
    context = await make_context(
        shown / "work", store, isolation="bubblewrap", bubblewrap=BubblewrapSettings(readable=(str(shown),))
    )
    worker = Worker(context, Inputs(store), shown / "work")
    finished = await worker.sh(f"cat f; ls {shown}; find {shown} -name lock", inputs={"f": b"x\n"})
    assert await worker.stdout(finished) == "x\ntool\nwork\n"
    context.workspace.close()


async def test_there_is_no_network_unless_it_is_asked_for(worker: Worker, listener: socket.socket) -> None:
    connect = f"exec 3<>/dev/tcp/127.0.0.1/{listener.getsockname()[1]}"
    assert (await worker.run("bash", "-c", connect)).action_result.exit_code == 1
    asked = await worker.run("bash", "-c", connect, platform=platform(network="on"))
    assert asked.action_result.exit_code == 0, asked
    refused = await worker.run("bash", "-c", connect, platform=platform(network="off"))
    assert refused.action_result.exit_code == 1


async def test_a_network_that_is_not_allowed_is_not_given(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(
        tmp_path / "work", store, isolation="bubblewrap", bubblewrap=BubblewrapSettings(allow_network=False)
    )
    worker = Worker(context, Inputs(store), tmp_path / "work")
    finished = await worker.run("true", platform=platform(network="on"))
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert "on" not in context.isolation.offered["network"]
    context.workspace.close()


async def test_no_other_process_is_seen_or_signalled(worker: Worker) -> None:
    # It is all that it sees, so the agent and this test survive it.
    finished = await worker.sh(
        f"kill -0 {os.getpid()} 2>/dev/null && echo seen; ls /proc | grep -c '^[0-9]'; kill -USR1 -1; true"
    )
    seen = int((await worker.stdout(finished)).splitlines()[0])
    assert seen <= 5


async def test_no_namespace_can_be_made_and_no_capability_is_left(worker: Worker) -> None:
    finished = await worker.sh(
        "unshare -r true 2>/dev/null && echo made; grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status"
    )
    assert (await worker.stdout(finished)).split() == ["CapEff:", "0" * 16, "NoNewPrivs:", "1"]


@pytest.mark.parametrize("root", [*RootKind])
async def test_an_input_cannot_be_written_through_and_one_that_was_opened_up_is_dropped(
    worker: Worker, root: RootKind, system: dict[str, Any]
) -> None:
    asked = platform(FileSystemRoot=root.value)
    inputs = {**system, "in": b"right", "d": {"in": b"right"}} if root is RootKind.INPUTS else {"in": b"right"}
    refused = await worker.sh("echo wrong > in; cat in", inputs=inputs, platform=asked)
    assert await worker.stdout(refused) == "right"
    forced = await worker.sh("chmod u+w in && echo wrong > in; cat in", inputs=inputs, platform=asked)
    assert (forced.status.code, forced.failure) == (0, NONE)
    assert await worker.stdout(await worker.sh("cat in", inputs=inputs, platform=asked)) == "right"


@pytest.mark.parametrize("name", ["SEGV", "ABRT", "KILL"])
async def test_death_by_signal_is_told_as_a_shell_does(worker: Worker, name: str) -> None:
    finished = await worker.sh(f"kill -{name} $$")
    number = getattr(signal, f"SIG{name}")
    assert (finished.status.code, finished.failure) == (0, NONE)
    assert finished.action_result.exit_code == 128 + number
    assert finished.message == f"killed by signal {number} (SIG{name})"


@pytest.mark.parametrize("code", [1, 127, 128, 128 + signal.SIGCHLD, 255])
async def test_an_exit_code_that_no_signal_has_is_told_of_as_none(worker: Worker, code: int) -> None:
    finished = await worker.sh(f"exit {code}")
    assert (finished.action_result.exit_code, finished.message) == (code, "")


@pytest.mark.parametrize("script", ["exec sleep 100", "trap '' TERM; while :; do sleep 100; done"])
async def test_a_timed_out_action_keeps_what_it_made(worker: Worker, script: str) -> None:
    before = descendants()
    finished = await worker.sh(
        f"echo so far; echo partial > out; {script}", timeout_seconds=0.3, output_paths=["out", "never"]
    )
    assert (finished.status.code, finished.failure) == (Code.DEADLINE_EXCEEDED, NONE)
    assert await worker.read(finished.action_result.stdout_digest) == b"so far\n"
    assert await worker.outputs(finished) == {"out": b"partial\n"}
    assert descendants() <= before


async def test_a_command_is_asked_to_end_before_it_is_killed(tmp_path: Path, store: MemoryStore) -> None:
    context = await make_context(tmp_path / "work", store, isolation="bubblewrap", kill_grace_seconds=60)
    worker = Worker(context, Inputs(store), tmp_path / "work")
    async with asyncio.timeout(30):
        finished = await worker.sh(
            "trap 'echo asked > out; exit 0' TERM; while :; do sleep 0.05; done",
            timeout_seconds=0.3,
            output_paths=["out"],
        )
    assert finished.status.code == Code.DEADLINE_EXCEEDED
    assert await worker.outputs(finished) == {"out": b"asked\n"}
    context.workspace.close()


@pytest.mark.parametrize("end", ["exit 0", "sleep 1000"])
async def test_daemons_end_with_the_action(worker: Worker, end: str) -> None:
    before = descendants()
    script = f"(setsid env -i sh -c 'cd /; trap \"\" TERM HUP; sleep 1001 & sleep 1002' >&- 2>&- &) & echo said; {end}"
    async with asyncio.timeout(30):
        finished = await worker.sh(script, timeout_seconds=0.5 if end != "exit 0" else 60)
    assert await worker.read(finished.action_result.stdout_digest) == b"said\n"
    assert descendants() <= before
    assert list((worker.work_dir / "w").iterdir()) == []


async def test_a_cancelled_action_leaves_no_process_and_no_directory(worker: Worker) -> None:
    before = descendants()
    running = asyncio.Event()
    lease = await worker.lease("/bin/sh", "-c", "trap '' TERM; setsid sleep 1000 & sleep 1000")
    progress = lambda phase, _: running.set() if phase == worker_pb2.Progress.RUNNING else None  # noqa: E731
    task = asyncio.create_task(LeasedAction(worker.context, lease, progress).run())
    async with asyncio.timeout(30):
        await running.wait()
        while not descendants() - before:
            await asyncio.to_thread(lambda: None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert descendants() <= before
    assert list((worker.work_dir / "w").iterdir()) == []


async def test_what_the_command_used_up_is_told(worker: Worker) -> None:
    script = "import time\nbegin = time.process_time()\nwhile time.process_time() - begin < 0.3: bytearray(60 << 20)\n"
    finished = await worker.run("python3", "-c", script)
    usage = worker_pb2.ResourceUsage()
    assert finished.action_result.execution_metadata.auxiliary_metadata[0].Unpack(usage)
    assert usage.user_seconds + usage.system_seconds >= 0.3
    assert usage.peak_memory_bytes >= 60 << 20


async def test_with_the_inputs_as_root_nothing_of_the_machine_is_there(worker: Worker, system: dict[str, Any]) -> None:
    inputs = {**system, "work": {"in": b"x\n"}}
    finished = await worker.run(
        "sh", "-c", "-e", "ls /; readlink -f /work/in; pwd; id -u; id -g; cat in > ../made; cat < /dev/null; ls /tmp",
        inputs=inputs, working_directory="work", env={"PATH": "/bin"}, output_paths=["../made"],
        platform=platform(FileSystemRoot="inputs"),
    )  # fmt: skip
    assert (await worker.stdout(finished)).split() == [
        "bin",
        "dev",
        "proc",
        "tmp",
        "usr",
        "work",
        "/work/in",
        "/work",
        "0",
        "0",
    ]
    assert await worker.outputs(finished) == {"../made": b"x\n"}


async def test_the_root_is_collected_without_what_was_mounted_there(
    tmp_path: Path, store: MemoryStore, system: dict[str, Any]
) -> None:
    context = await make_context(
        tmp_path / "work", store, isolation="bubblewrap", bubblewrap=BubblewrapSettings(root=RootKind.INPUTS)
    )
    worker = Worker(context, Inputs(store), tmp_path / "work")
    inputs = {**system, "tmp": {"kept": b"k"}}
    finished = await worker.run(
        "/bin/sh", "-c", "touch /made /tmp/lost /dev/shm/lost", inputs=inputs, output_paths=["."]
    )
    [directory] = finished.action_result.output_directories
    tree = re_pb2.Tree.FromString(await worker.read(directory.tree_digest))
    assert [node.name for node in tree.root.directories] == ["bin", "tmp"]
    assert [node.name for node in tree.root.files] == ["made"]
    assert ["kept"] in [[node.name for node in child.files] for child in tree.children]
    assert not any(node.name == "lost" for child in tree.children for node in child.files)
    context.workspace.close()


@pytest.mark.parametrize("there", [True, False], ids=["with a /tmp", "without"])
@pytest.mark.parametrize("path", ["tmp/a/out", "../tmp/out", "var/tmp/out"])
async def test_outputs_below_tmp_are_outputs(worker: Worker, system: dict[str, Any], there: bool, path: str) -> None:
    inputs = {**system, "var": {"tmp": Link("../tmp")}, **({"tmp": {"in": b"i"}} if there else {})}
    up = path.startswith("..")
    finished = await worker.run(
        "/bin/sh", "-c", f"ls /tmp; echo x > {path}; echo $TMPDIR; echo y > $TMPDIR/other",
        inputs=inputs, output_paths=[path], working_directory="var" if up else "", platform=platform(FileSystemRoot="inputs"),
    )  # fmt: skip
    said = (await worker.stdout(finished)).split()
    assert said == [*(["a"] if "/a/" in path else []), *(["in"] if there else []), "/tmp"]
    assert await worker.outputs(finished) == {path: b"x\n"}


async def test_an_empty_tmp_is_an_output_too_where_it_is_asked_for(worker: Worker, system: dict[str, Any]) -> None:
    for inputs in (system, {**system, "tmp": {}}):
        finished = await worker.run(
            "/bin/true", inputs=inputs, output_paths=["tmp"], platform=platform(FileSystemRoot="inputs")
        )
        assert [found.path for found in finished.action_result.output_directories] == ["tmp"]


@pytest.mark.parametrize("name", ["proc", "dev", "tmp"])
@pytest.mark.parametrize("node", [b"a file", Link("/oldroot/tmp"), Link("bin")])
async def test_a_mount_point_that_is_no_directory_is_refused(
    worker: Worker, system: dict[str, Any], name: str, node: object
) -> None:
    finished = await worker.run("/bin/true", inputs={**system, name: node}, platform=platform(FileSystemRoot="inputs"))
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)
    assert name in finished.status.message


@pytest.mark.parametrize("name", ["proc", "dev", "tmp"])
async def test_such_names_mean_nothing_with_the_machine_as_root(worker: Worker, name: str) -> None:
    finished = await worker.sh(f"cat {name}/f {name}2", inputs={name: {"f": b"a"}, f"{name}2": b"b"})
    assert await worker.stdout(finished) == "ab"


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../../../../../../etc/passwd", "/oldroot/etc/passwd", "/newroot/../etc/passwd"]
)
async def test_links_lead_nowhere_outside_of_a_root_of_its_own(
    worker: Worker, system: dict[str, Any], target: str
) -> None:
    inputs = {**system, "link": Link(target), "etc": Link("/")}
    finished = await worker.run(
        "cat", "/link", inputs=inputs, env={"PATH": "/bin"}, platform=platform(FileSystemRoot="inputs")
    )
    assert finished.action_result.exit_code == 1
    assert await worker.stdout(finished) == ""


async def test_a_program_of_the_machine_is_not_found_in_a_root_of_its_own(
    worker: Worker, system: dict[str, Any]
) -> None:
    for program, link in (("python3", {}), ("/usr/bin/python3", {}), ("/loop", {"loop": Link("/loop")})):
        finished = await worker.run(program, inputs={**system, **link}, platform=platform(FileSystemRoot="inputs"))
        assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, NONE)


async def test_directories_are_read_only_where_the_client_says_so(worker: Worker, system: dict[str, Any]) -> None:
    def marked(value: str) -> re_pb2.NodeProperties:
        return re_pb2.NodeProperties(properties=[re_pb2.NodeProperty(name="SubtreeReadOnly", value=value)])

    work = await worker.inputs.tree({"in": b"x"}, marked("false"))
    root = await worker.inputs.tree({**system, "lib": {"f": b"x"}, "a": {"work": work}}, marked("true"))
    finished = await worker.run(
        "sh", "-c", "for path in /x /lib/x /a/x /a/work/x /tmp/x; do (echo > $path) 2> /dev/null && echo $path; done; true",
        inputs=root, env={"PATH": "/bin"}, working_directory="a/work", platform=platform(FileSystemRoot="inputs"),
    )  # fmt: skip
    assert (await worker.stdout(finished)).split() == ["/a/work/x", "/tmp/x"]


@pytest.mark.parametrize("root", [*RootKind])
async def test_the_user_and_group_asked_for_are_what_it_sees(
    worker: Worker, system: dict[str, Any], root: RootKind
) -> None:
    asked = platform(unixUID="1234", unixGID="0", FileSystemRoot=root.value)
    finished = await worker.sh("id -u; id -g; echo x > out", inputs=system, platform=asked, output_paths=["out"])
    assert (await worker.stdout(finished)).split() == ["1234", "0"]
    assert await worker.outputs(finished) == {"out": b"x\n"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[
            ("unixUID", value)
            for value in ("-1", str(2**40), str(2**31), "root", "1 --ro-bind / /", "٣", "0x10", "1_0", "+1")
        ],
        ("unixGID", "wheel"),
        ("network", "yes"),
        ("FileSystemRoot", "/"),
    ],
)
async def test_a_property_with_an_impossible_value_is_refused(worker: Worker, name: str, value: str) -> None:
    finished = await worker.run("true", platform=platform(**{name: value}))
    assert (finished.status.code, finished.failure) == (Code.INVALID_ARGUMENT, NONE)
    assert name in finished.status.message


async def test_the_largest_user_that_is_accepted_can_be_had(worker: Worker) -> None:
    finished = await worker.sh("id -u", platform=platform(unixUID=str(2**31 - 1)))
    assert await worker.stdout(finished) == f"{2**31 - 1}\n"


async def test_a_property_with_two_values_is_refused(worker: Worker) -> None:
    twice = platform(unixUID="1")
    twice.properties.add(name="unixUID", value="2")
    assert (await worker.run("true", platform=twice)).status.code == Code.INVALID_ARGUMENT


def bubblewrap(program: str) -> Bubblewrap:
    return Bubblewrap(BubblewrapSettings(), [], program)


def test_a_machine_without_bwrap_is_told_what_to_install() -> None:
    with pytest.raises(CannotIsolate, match="no-such-bwrap, which is not there: install bubblewrap"):
        bubblewrap("no-such-bwrap").require()


def test_what_must_be_readable_must_be_there() -> None:
    with pytest.raises(CannotIsolate, match="/no/such/toolchain is not there"):
        Bubblewrap(BubblewrapSettings(readable=("/no/such/toolchain",)), []).require()


@pytest.mark.parametrize("path", ["usr", "/", "/usr/../etc", "/a\0", ""])
def test_paths_that_are_not_absolute_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"readable has .*expected absolute paths"):
        BubblewrapSettings(readable=(path,))


def test_a_machine_without_user_namespaces_is_told_what_to_allow(tmp_path: Path) -> None:
    program = tmp_path / "bwrap"
    program.write_text(
        "#!/bin/sh\n[ \"$1\" = --help ] && exit 0\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n"
    )
    program.chmod(0o755)
    with pytest.raises(CannotIsolate, match=r"No permissions to create new namespace.*sysctl user.max_user_namespaces"):
        bubblewrap(str(program)).require()


def test_where_the_kernel_gives_no_namespace_the_worker_says_so_and_what_helps() -> None:
    """In a namespace in which no further ones are allowed, as on a machine where they are switched off."""
    require = (
        "from rexec.worker.bubblewrap import Bubblewrap, BubblewrapSettings, CannotIsolate\n"
        "try:\n    Bubblewrap(BubblewrapSettings(), []).require()\n"
        "except CannotIsolate as reason:\n    print(reason)\n"
    )
    script = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script, "sh", sys.executable, "-c", require]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "bwrap cannot isolate on this machine: bwrap: " in ended.stdout, ended
    assert "sysctl user.max_user_namespaces" in ended.stdout
    assert 'isolation = "landlock" or "none"' in ended.stdout


async def test_a_room_is_used_again_though_something_was_mounted_in_it(worker: Worker, system: dict[str, Any]) -> None:
    inputs = {**system, "many": {str(number): str(number).encode() for number in range(20)}}
    asked = platform(FileSystemRoot="inputs")
    for number in range(3):
        finished = await worker.sh("ls /; touch made", inputs={**inputs, "n": str(number).encode()}, platform=asked)
        assert "made" not in (await worker.stdout(finished)).split()
        assert len(worker.context.kept) == 1
