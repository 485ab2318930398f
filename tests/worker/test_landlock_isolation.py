"""Real actions under Landlock and the filter. Where the kernel has no Landlock, each test sees that the worker refuses it."""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import subprocess
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

import msgspec
import pytest
from google.rpc import code_pb2

from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.isolation import CannotIsolate
from rexec.worker.isolations import isolation_of
from rexec.worker.landlock import Landlock
from rexec.worker.landlock_isolation import LandlockIsolation
from rexec.worker.landlock_settings import LandlockSettings
from rexec.worker.machine import offered_properties
from rexec.worker.seccomp import Sockets
from rexec.worker.settings import IsolationKind
from rexec.worker.system_calls import architecture
from tests.worker.actions import File, Link, Worker, settings_for

PYTHON = "/usr/bin/python3"


def abi_here() -> int:
    try:
        return Landlock(architecture()).abi()
    except (OSError, LookupError):
        return 0


def applied(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Run the test, or where there is no Landlock assert that the worker says so at its start."""

    @wraps(test)
    async def run(**arguments: Any) -> None:
        if abi_here():
            await test(**arguments)
        else:
            with pytest.raises(CannotIsolate, match=r'needs .*; use "bubblewrap" or "none"'):
                isolated(arguments["worker"])

    return run


def isolated(worker: Worker, abi: Callable[[Landlock], int] = Landlock.abi, **changes: Any) -> Worker:
    """The worker, whose actions are restricted from now on."""
    own = [str(worker.work_dir)]
    isolation = LandlockIsolation(LandlockSettings(**changes), own, abi=abi)
    isolation.require()
    worker.context.isolation = isolation
    return worker


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the same user that is nobody's action; to be named before `worker`, which would end what comes later."""
    process = subprocess.Popen(["/bin/sleep", "1000"], env={"TOKEN": "secret"})
    yield process
    process.kill()
    process.wait()


def is_there(path: str) -> bool:
    return os.path.lexists(path)


def write(path: str, text: str) -> None:
    Path(path).write_text(text)


def restrictions_of(process: str) -> list[str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return [line for line in lines if line.startswith(("NoNewPrivs", "Seccomp", "Cap"))]


async def exit_code(worker: Worker, *arguments: str, **options: Any) -> int:
    finished = await worker.run(*arguments, **options)
    assert finished.status.code == 0, finished
    return finished.action_result.exit_code


async def python(worker: Worker, script: str, **options: Any) -> worker_pb2.Finished:
    """Run a script of the system's interpreter; -S, because it needs no packages."""
    finished = await worker.run(PYTHON, "-S", "-c", textwrap.dedent(script), **options)
    assert finished.status.code == 0, finished
    return finished


async def printed(worker: Worker, script: str, **options: Any) -> str:
    finished = await python(worker, script, **options)
    said = await worker.read(finished.action_result.stderr_digest)
    assert finished.action_result.exit_code == 0, said.decode()
    return (await worker.read(finished.action_result.stdout_digest)).decode().strip()


@applied
async def test_what_is_not_declared_cannot_be_read_not_even_by_root(worker: Worker, tmp_path: Path) -> None:
    isolated(worker)
    secret = tmp_path / "token"
    secret.write_text("secret")
    for path in (secret, Path("/etc/shadow"), worker.work_dir / "sessions", Path("/root"), Path("/"), tmp_path):
        code = (
            "import os, sys; print(os.path.isdir(sys.argv[1]) and os.listdir(sys.argv[1]) or open(sys.argv[1]).read())"
        )
        finished = await worker.run(PYTHON, "-S", "-c", code, str(path))
        said = await worker.read(finished.action_result.stderr_digest)
        assert finished.action_result.exit_code == 1, path
        assert b"PermissionError: [Errno 13]" in said, path


@applied
async def test_a_symlink_among_the_inputs_leads_to_nothing_undeclared(worker: Worker, tmp_path: Path) -> None:
    isolated(worker)
    (tmp_path / "token").write_text("secret")
    inputs = {"token": Link(str(tmp_path / "token")), "here": Link("real"), "real": b"text"}
    finished = await worker.sh("cat here; cat token", inputs=inputs)
    assert finished.action_result.exit_code == 1
    assert await worker.stdout(finished) == "text"


@applied
async def test_nothing_outside_its_directories_can_be_written(worker: Worker, tmp_path: Path) -> None:
    isolated(worker)
    target = tmp_path / "file"
    target.write_text("kept")
    script = f"""
    for attempt in 'echo x > {target}' 'echo x >> {target}' 'rm {target}' 'mv {target} .' 'mkdir {tmp_path}/new' \
        'ln -s x {tmp_path}/link' 'ln {target} linked' 'truncate -s 0 {target}' 'touch /usr/rexec-test' \
        'echo 1 > /proc/self/oom_score_adj' \
        'mkfifo {tmp_path}/fifo' 'echo x > ../stdout' 'touch ../new' 'mv ../tmp ../tmp2'; do
        if sh -c "$attempt" 2>/dev/null; then echo "allowed: $attempt"; fi
    done
    """
    assert await worker.stdout(await worker.sh(script)) == ""
    assert target.read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "work"]


@applied
async def test_its_input_root_and_tmpdir_are_its_own_and_tmpdir_is_gone_afterwards(worker: Worker) -> None:
    isolated(worker)
    finished = await worker.sh(
        "set -e; mkdir -p a b; echo 1 > a/x; mv a/x b/x; ln b/x b/y; ln -s y b/z; echo 2 >> b/z; mkfifo pipe; chmod 700 b;"
        'echo 3 > "$TMPDIR/t"; mv "$TMPDIR/t" b/t; truncate -s 1 b/t; cat b/x > out; test -z "$(ls -A $TMPDIR)"'
        "; touch $TMPDIR/left;"
        "rm -r a pipe; echo $TMPDIR",
        inputs={"in": b"x"},
        output_paths=["out"],
    )
    assert finished.action_result.exit_code == 0, await worker.read(finished.action_result.stderr_digest)
    assert await worker.outputs(finished) == {"out": b"1\n2\n"}
    assert not is_there((await worker.stdout(finished)).strip() + "/left")


@applied
async def test_inputs_are_read_only_even_for_root_and_one_that_is_made_writable_spoils_no_other_action(
    worker: Worker,
) -> None:
    isolated(worker)
    inputs = {"header.h": b"#define ONE 1\n"}
    assert await exit_code(worker, "/bin/sh", "-c", "echo two > header.h", inputs=inputs) != 0
    assert await exit_code(worker, "/bin/sh", "-c", "chmod u+w header.h && echo two > header.h", inputs=inputs) == 0
    assert await worker.stdout(await worker.sh("cat header.h", inputs=inputs)) == "#define ONE 1\n"


@applied
async def test_two_actions_at_once_see_nothing_of_each_other(worker: Worker) -> None:
    isolated(worker)
    # Any other room stands for one that is in use.
    room = worker.context.workspace.room()
    write(f"{room.root}/source.c", "secret")
    finished = await worker.sh(
        f"cat {room.root}/source.c; ls {room.path} {worker.work_dir}/cache; echo x > {room.root}/new"
    )
    assert finished.action_result.exit_code != 0
    assert await worker.stdout(finished) == ""
    assert os.listdir(room.root) == ["source.c"]
    worker.context.workspace.discard(room)


@applied
async def test_no_secret_of_another_process_can_be_read_and_no_other_process_be_stopped(
    other: subprocess.Popen[bytes], worker: Worker
) -> None:
    isolated(worker)
    agent = f"/proc/{os.getpid()}"
    finished = await worker.sh(
        f"cat {agent}/environ /proc/{other.pid}/environ; ls /proc/{other.pid}/root/ {agent}/task/{os.getpid()}/cwd/;"
        f"readlink {agent}/cwd {agent}/fd/0; cat {agent}/fd/0; head -c 1 /proc/{other.pid}/mem; true"
    )
    assert await worker.stdout(finished) == ""
    if abi_here() >= 6:
        assert await exit_code(worker, "/bin/kill", "-9", str(other.pid)) == 1
        assert other.poll() is None
    traced = await printed(
        worker,
        f"""
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.ptrace(16, {other.pid}, 0, 0), ctypes.get_errno())
        child = os.fork()
        if child == 0:
            os.execv("/bin/sleep", ["sleep", "1000"])
        print(libc.ptrace(0x4206, child, 0, 0))  # its own: PTRACE_SEIZE
        os.kill(child, 9)
        """,
    )
    assert traced == f"-1 {errno.EPERM}\n0"


@applied
async def test_there_is_no_network_and_no_socket_of_the_machine(worker: Worker, tmp_path: Path) -> None:
    isolated(worker)
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        script = f"""
        import socket
        for family, address in ((socket.AF_INET, {tcp.getsockname()!r}), (socket.AF_UNIX, {unix.getsockname()!r})):
            try:
                with socket.socket(family) as client:
                    client.connect(address)
                print("connected")
            except OSError as failure:
                print(failure.errno)
        a, b = socket.socketpair()
        a.send(b"pair")
        print(b.recv(4).decode())
        """
        assert (await printed(worker, script)).split() == [str(errno.EACCES), str(errno.EACCES), "pair"]
        isolated(worker, sockets=Sockets.UNIX)
        assert (await printed(worker, script)).split() == [str(errno.EACCES), "connected", "pair"]
        isolated(worker, sockets=Sockets.ALL)
        assert (await printed(worker, script)).split() == ["connected", "connected", "pair"]


@applied
async def test_tcp_alone_is_denied_by_landlock_where_the_kernel_can(worker: Worker) -> None:
    if abi_here() < 4:
        with pytest.raises(CannotIsolate, match='sockets = "no-tcp" needs Landlock 4'):
            isolated(worker, sockets=Sockets.NO_TCP)
        return
    isolated(worker, sockets=Sockets.NO_TCP)
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        said = await printed(
            worker,
            f"""
            import socket
            def attempt(what):
                try:
                    what()
                    print("done")
                except OSError as failure:
                    print(failure.errno)
            attempt(lambda: socket.socket().connect({tcp.getsockname()!r}))
            attempt(lambda: socket.socket().bind(("127.0.0.1", 0)))
            attempt(lambda: socket.socket().sendto(b"x", 0x20000000, {tcp.getsockname()!r}))
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
            attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
            attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
            attempt(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", {udp.getsockname()!r}))
            """,
        )
    denied = str(errno.EACCES)
    assert said.split() == [denied, denied, str(errno.EPERM), denied, denied, denied, "done"]


@applied
async def test_abstract_unix_sockets_of_others_are_out_of_reach_where_the_kernel_can(worker: Worker) -> None:
    isolated(worker, sockets=Sockets.UNIX)
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(b"\0rexec-test-" + os.urandom(8).hex().encode())
        service.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({service.getsockname()!r})"
        finished = await worker.run(PYTHON, "-S", "-c", code)
        assert finished.action_result.exit_code == (1 if abi_here() >= 6 else 0)


@applied
async def test_calls_that_rearrange_the_machine_are_refused_and_new_programs_gain_nothing(worker: Worker) -> None:
    isolated(worker)
    said = await printed(
        worker,
        """
        import ctypes, errno, os, resource
        libc = ctypes.CDLL(None, use_errno=True)
        def refused(result):
            return result == -1 and errno.errorcode[ctypes.get_errno()]
        print(refused(libc.mount(b"none", b".", b"tmpfs", 0, None)))
        print(refused(libc.unshare(0x10000000)))
        print(refused(libc.chroot(b".")))
        print(refused(libc.setns(0, 0)))
        print(refused(libc.syscall(425, 1, 0)))
        print(refused(libc.syscall(435, 0, 0)))
        try:
            resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (5, 5))
            print("limited another")
        except PermissionError:
            print("EPERM")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        status = dict(line.split(":\\t") for line in open("/proc/self/status").read().splitlines() if ":\\t" in line)
        print(status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16), int(status["CapPrm"], 16))
        """,
    )
    assert said.splitlines() == ["EPERM"] * 5 + ["ENOSYS", "EPERM", "1 2 0 0"]


@applied
async def test_a_kernel_of_any_version_denies_what_it_can_and_builds_go_on(worker: Worker, tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("secret")
    for version in range(1, abi_here() + 1):
        isolated(worker, lambda _, version=version: version)  # type: ignore[misc] # as an older kernel would be taken
        finished = await worker.sh(
            f"set -e; mkdir a b; echo 1 > a/x; mv a/x b/x; cat b/x; ! cat {secret}; ! echo x > {secret}; > b/x; test ! -s b/x;"
            f"rm -r a b; gcc -o main main.c; ./main; if truncate -s 0 {secret}; then echo truncated; fi",
            inputs={"main.c": b"int main() { return 0; }\n"},
        )
        assert finished.action_result.exit_code == 0, (version, await worker.read(finished.action_result.stderr_digest))
        # What a version does not know it cannot deny, though opening for writing is denied by all.
        assert await worker.stdout(finished) == "1\n", version
        assert secret.read_text() == "secret"
        assert worker.context.isolation.offered["Landlock"] == [str(1 + older) for older in range(version)]


@applied
async def test_device_nodes_cannot_be_made(worker: Worker) -> None:
    isolated(worker)
    assert await exit_code(worker, "/bin/sh", "-c", "mknod disk b 8 0 || mknod mem c 1 1") != 0


@applied
async def test_cxx_and_rust_are_compiled_and_what_comes_out_runs(worker: Worker) -> None:
    isolated(worker)
    source = b'#include <iostream>\n#include "own.h"\nint main() { std::cout << ONE << std::endl; }\n'
    finished = await worker.sh(
        "g++ -O1 -pipe -o hello main.cc && ./hello && g++ -o hello main.cc && ./hello && ar rc lib.a hello",
        inputs={"main.cc": source, "own.h": b"#define ONE 1\n"},
    )
    said = await worker.read(finished.action_result.stderr_digest)
    assert finished.action_result.exit_code == 0, f"needs g++ (apt-get install g++): {said.decode()}"
    assert await worker.stdout(finished) == "1\n1\n"
    finished = await worker.sh(
        "rustc -o hello main.rs && ./hello", inputs={"main.rs": b'fn main() { println!("rust"); }'}
    )
    said = await worker.read(finished.action_result.stderr_digest)
    assert finished.action_result.exit_code == 0, f"needs rustc in /usr/bin (apt-get install rustc): {said.decode()}"
    assert await worker.stdout(finished) == "rust\n"


@applied
async def test_what_scripts_do_every_day_works(worker: Worker) -> None:
    isolated(worker)
    finished = await worker.run(
        "/bin/bash",
        "-c",
        "set -e; exec 2>&1; echo x > /dev/null; echo y | cat > /dev/stdout; head -c 4 /dev/urandom > r;"
        "cat <(echo z); cat <<< here;"
        "ulimit -c 0; date > /dev/null; nproc > /dev/null; id -un > /dev/null; cat /proc/self/status > /dev/null;"
        "(sleep 0.01 & wait);"
        "./script; ./plain; env -i /usr/bin/sort < /dev/null; cp -p script copy; tar cf a.tar script; tar xf a.tar",
        inputs={
            "script": _executable("#!/bin/sh\necho script\n"),
            "plain": _executable("echo plain\n"),
        },
    )
    said = await worker.stdout(finished)
    assert said == "y\nz\nhere\nscript\nplain\n"
    assert finished.action_result.exit_code == 0
    script = (
        "import subprocess, tempfile; subprocess.run('true', check=True); print(tempfile.TemporaryFile().write(b'x'))"
    )
    assert await printed(worker, script) == "1"


@applied
async def test_shared_memory_is_there_for_those_who_declare_it(worker: Worker) -> None:
    script = "import multiprocessing; lock = multiprocessing.Lock(); lock.acquire(); print('locked')"
    isolated(worker)
    assert (await python(worker, script)).action_result.exit_code == 1
    isolated(worker, writable=("/dev/shm",))
    assert await printed(worker, script) == "locked"


@applied
async def test_what_is_declared_beside_the_system_can_be_read_and_written(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "tool").write_text("#!/bin/sh\necho tool\n")
    (tmp_path / "tools" / "tool").chmod(0o755)
    (tmp_path / "shared").mkdir()
    isolated(worker, readable=(str(tmp_path / "tools"),), writable=(str(tmp_path / "shared"),))
    tools = f"{tmp_path}/tools"
    finished = await worker.sh(f"{tools}/tool; echo x > {tmp_path}/shared/x; ! echo x > {tools}/x")
    assert finished.action_result.exit_code == 0
    assert await worker.stdout(finished) == "tool\n"
    assert (tmp_path / "shared" / "x").read_text() == "x\n"


@applied
async def test_a_program_that_is_not_declared_is_not_started_and_the_user_is_told(
    worker: Worker, tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    isolated(worker)
    (tmp_path / "python3").symlink_to(PYTHON)
    script = {"script": _executable(f"#!{tool}\n")}
    for finished in (await worker.run(str(tool)), await worker.run("./script", inputs=script)):
        assert finished.status.code == code_pb2.FAILED_PRECONDITION
        assert (
            "is neither in the input root nor in what [worker.landlock] of the worker declares"
            in finished.status.message
        )
    assert await exit_code(worker, f"{tmp_path}/python3", "-S", "-c", "") == 0  # where it leads to is declared
    finished = await worker.run("./missing")
    assert "there is no such file" in finished.status.message


@applied
async def test_the_agent_itself_is_not_restricted_and_the_tree_of_processes_ends_as_ever(
    worker: Worker, tmp_path: Path
) -> None:
    before = restrictions_of("self")
    isolated(worker)
    finished = await worker.sh(
        "setsid sh -c 'echo $$ > pid; exec sleep 1000' & while ! test -s pid; do :; done; cat pid"
    )
    pid = int(await worker.stdout(finished))
    assert not is_there(f"/proc/{pid}")
    finished = await worker.sh("trap '' TERM; while :; do sleep 1; done", timeout_seconds=0.1)
    assert finished.action_result.exit_code == 128 + signal.SIGKILL
    (tmp_path / "mine").write_text("written")
    assert restrictions_of("self") == before


@applied
async def test_undeclared_reads_are_let_through_and_told_with_audit(worker: Worker, tmp_path: Path) -> None:
    isolated(worker, audit=True)
    (tmp_path / "header.h").write_text("text")
    (tmp_path / "tool").write_text("#!/bin/sh\necho tool\n")
    (tmp_path / "tool").chmod(0o755)
    finished = await worker.sh(
        f"cat {tmp_path}/header.h in {tmp_path}/none {tmp_path}/header.h; cd {tmp_path}; ./tool; echo x > {tmp_path}/new",
        inputs={"in": b"input"},
    )
    assert await worker.stdout(finished) == "textinputtexttool\n"
    assert finished.action_result.exit_code == 2
    assert finished.message == f"read without being declared: '{tmp_path}/header.h', '{tmp_path}/tool'"
    _, packed = finished.action_result.execution_metadata.auxiliary_metadata
    found = worker_pb2.UndeclaredReads()
    assert packed.Unpack(found)
    assert (list(found.paths), found.left_out) == ([f"{tmp_path}/header.h", f"{tmp_path}/tool"], 0)
    assert not (tmp_path / "new").exists()
    finished = await worker.sh("g++ -E -o out main.cc", inputs={"main.cc": b"#include <vector>\n"})
    assert finished.message == ""
    assert finished.action_result.exit_code == 0
    assert len(finished.action_result.execution_metadata.auxiliary_metadata) == 1


@applied
async def test_an_audit_is_as_good_for_what_cannot_be_started_or_is_killed(worker: Worker, tmp_path: Path) -> None:
    isolated(worker, audit=True)
    (tmp_path / "a").write_text("text")
    assert (await worker.run("./not-there")).status.code != 0
    finished = await worker.sh(f"cat {tmp_path}/a; sleep 1000", timeout_seconds=0.5)
    assert finished.message == f"read without being declared: '{tmp_path}/a'"
    (tmp_path / "many").mkdir()
    for number in range(120):
        (tmp_path / "many" / f"{number:03}").touch()
    finished = await worker.sh(f"cat {tmp_path}/many/*")
    assert finished.message.endswith(f"'{tmp_path}/many/008' and 111 more")


@applied
async def test_no_garbage_is_collected_by_a_thread_without_rights(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolated(worker)
    collects: list[bool] = []
    popen = subprocess.Popen

    def seen(*arguments: object, **options: object) -> object:
        collects.append(gc.isenabled())
        return popen(*arguments, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", seen)
    assert (await worker.sh("true")).action_result.exit_code == 0
    assert collects == [False]
    assert gc.isenabled()


@applied
async def test_a_worker_offers_what_its_kernel_has_so_that_actions_can_ask_for_the_least_they_need(
    worker: Worker,
) -> None:
    isolated(worker)
    offered = offered_properties({}, worker.context.isolation.offered)
    assert ("Isolation", "landlock") in offered
    versions = [value for name, value in offered if name == "Landlock"]
    assert sorted(map(int, versions)) == list(range(1, abi_here() + 1))


def _executable(text: str) -> File:
    return File(text.encode(), is_executable=True)


def refusal(isolation: LandlockIsolation) -> str:
    with pytest.raises(CannotIsolate) as raised:
        isolation.require()
    return str(raised.value)


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSYS, "Function not implemented"), (errno.EOPNOTSUPP, "Operation not supported")]
)
def test_a_kernel_without_landlock_is_refused_at_the_start_with_what_to_do(code: int, said: str) -> None:
    def abi(_: Landlock) -> int:
        raise OSError(code, os.strerror(code))

    assert refusal(LandlockIsolation(LandlockSettings(), [], abi=abi)) == (
        'isolation = "landlock" needs a kernel with Landlock (Linux 5.13, and `landlock` in /sys/kernel/security/lsm): '
        f'{said}; use "bubblewrap" or "none"'
    )


def test_an_unknown_processor_is_refused_at_the_start() -> None:
    said = refusal(LandlockIsolation(LandlockSettings(), [], known=lambda: architecture("sparc64")))
    assert "the system calls of a sparc64 processor are not known" in said


def test_an_old_kernel_is_refused_what_it_cannot_do(tmp_path: Path) -> None:
    settings = LandlockSettings(sockets=Sockets.NO_TCP)
    said = refusal(LandlockIsolation(settings, [], abi=lambda _: 3))
    assert said == 'sockets = "no-tcp" needs Landlock 4 (Linux 6.7), this kernel has 3; use "none" or "unix"'


def test_paths_that_are_missing_or_show_other_actions_are_refused(tmp_path: Path) -> None:
    def said(**changes: Any) -> str:
        own = [str(tmp_path / "work"), str(tmp_path / "cache")]
        return refusal(LandlockIsolation(LandlockSettings(**changes), own, abi=lambda _: 1))

    assert said(readable=(f"{tmp_path}/none",)) == f"[worker.landlock] declares {tmp_path}/none, which does not exist"
    (tmp_path / "cache").mkdir()
    (tmp_path / "link").symlink_to(tmp_path)
    for path in ("/", str(tmp_path), f"{tmp_path}/cache", f"{tmp_path}/link"):
        assert "actions would see each other" in said(readable=(path,))
        assert "actions would see each other" in said(writable=(path,))
        assert "actions would see each other" in said(system_paths=(path,))


@pytest.mark.parametrize("path", ["", "usr", "./usr", "/usr/../etc", "/a\0b", "~/.rustup"])
@pytest.mark.parametrize("field", ["system_paths", "readable", "writable"])
def test_paths_that_are_not_absolute_are_refused(field: str, path: str) -> None:
    with pytest.raises(ValueError, match="expected absolute paths"):
        msgspec.convert({field: [path]}, LandlockSettings)


def test_the_setting_stands_for_it(tmp_path: Path) -> None:
    settings = settings_for(tmp_path / "work", isolation=IsolationKind.LANDLOCK)
    assert isinstance(isolation_of(settings), LandlockIsolation)
