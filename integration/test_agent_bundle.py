"""The self-contained worker agent in root file systems without Python: with an older C library than it was built with, with a
newer one, with another one, with none, and with nothing at all.

The root is read-only and the user has no name, as pods have it under the restricted Pod Security Standard.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from integration.image_worker import PLACE, Worker, attached, pod
from integration.process import children_of
from integration.remote_action import run_action
from integration.root_filesystem import RootFilesystem, root_of_debian
from integration.server import Server, running_server
from rexec.agent_bundle import OWN_PACKAGES, digest_of
from tests.edge.certificates import Authority

_CHECKOUT = Path(__file__).parent.parent
_BUSYBOX = Path("/bin/busybox")
_MUSL = Path("/lib/ld-musl-x86_64.so.1")
_USER = 65532
_MAX_BUNDLE_BYTES = 80_000_000
_SECONDS = 60


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What bundles are made of, as it is now."""
    copy = tmp_path_factory.mktemp("sources")
    for folder in (*OWN_PACKAGES, "scripts"):
        shutil.copytree(_CHECKOUT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def bundle(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once, by the script."""
    return built(sources, tmp_path_factory.mktemp("bundle") / "agent")


def built(sources: Path, folder: Path) -> Path:
    """A new bundle in that folder. Raises AssertionError with what the script says."""
    ended = subprocess.run(
        ["scripts/agent-bundle.sh", str(folder)],
        cwd=sources, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system without a single file, as of an image `FROM scratch`."""
    return tmp_path_factory.mktemp("nothing")


@pytest.fixture(scope="module")
def agent(bundle: Path, nothing: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that a user without a name has made, as the init container of a pod does."""
    volume = tmp_path_factory.mktemp("volume")
    os.chown(volume, _USER, _USER)
    image = RootFilesystem(nothing, shown={"/opt/rexec/agent": bundle}, volumes={"/volume": volume})
    inside = image.command(tmp_path_factory.mktemp("layer"), ["/opt/rexec/agent/run", "copy-agent", "/volume"])
    copied = subprocess.run(inside, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert copied.returncode == 0, copied.stderr
    assert (volume / "run").stat().st_uid == _USER
    return volume


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Without workers of its own."""
    with running_server(tmp_path_factory.mktemp("server"), slots=0) as started:
        yield started


def busybox() -> bytes:
    """A program that needs no library."""
    assert _BUSYBOX.exists(), f"{_BUSYBOX} is not there; run: make clients"
    return _BUSYBOX.read_bytes()


_SCRIPT = """
read word <in.txt && mkdir -p deep && echo "$word from $(id -u 2>/dev/null || ./busybox id -u)" >deep/out.txt
while read name value; do case $name in LD_*|OPENSSL*|PYTHON*) echo "inherited $name $value" >&2;; esac; done <<END
$(env 2>/dev/null || ./busybox env)
END
echo done
"""


def expect_work(server: Server, worker: Worker, shell: Sequence[str] = ("/bin/sh",), **inputs: bytes) -> None:
    """One action with inputs and outputs on that worker."""
    files = {"in.txt": b"hello\n", "script": _SCRIPT.encode(), **inputs}
    ran = run_action(server.address, [*shell, "script"], files, ["deep/out.txt"])
    assert (ran.exit_code, ran.stdout, ran.stderr) == (0, b"done\n", b"")
    assert ran.outputs == {"deep/out.txt": f"hello from {_USER}\n".encode()}
    assert ran.worker == worker.name


def test_it_is_small_enough_to_be_copied_into_every_pod(bundle: Path) -> None:
    size_bytes = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    assert size_bytes < _MAX_BUNDLE_BYTES, f"{size_bytes / 1e6:.1f} MB"


@pytest.mark.parametrize(
    ("release", "properties"),
    [
        ("bullseye", {"os": ["debian-11"], "libc": ["glibc-2.31"]}),
        ("bookworm", {"os": ["debian-12"], "libc": ["glibc-2.36"]}),
        ("trixie", {"os": ["debian-13"], "libc": ["glibc-2.41"]}),
    ],
)
def test_an_image_with_a_c_library_of_its_own(
    server: Server, agent: Path, tmp_path: Path, release: str, properties: dict[str, list[str]]
) -> None:
    with attached(server.address, pod(root_of_debian(release), agent), tmp_path) as worker:
        assert {name: worker.properties.get(name) for name in properties} == properties
        expect_work(server, worker)


def test_an_image_with_nothing_in_it(server: Server, agent: Path, nothing: Path, tmp_path: Path) -> None:
    with attached(server.address, pod(nothing, agent), tmp_path) as worker:
        assert {"os", "libc", "gcc"}.isdisjoint(worker.properties)
        assert worker.properties["ISA"] == ["x86-64"]
        expect_work(server, worker, ("./busybox", "sh"), busybox=busybox())


def test_an_image_with_another_c_library(server: Server, agent: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "lib").mkdir()
    assert _MUSL.exists(), f"{_MUSL} is not there; run: make clients"
    shutil.copyfile(_MUSL, root / "lib" / _MUSL.name)
    (root / "bin" / "busybox").write_bytes(busybox())
    (root / "bin" / "busybox").chmod(0o755)
    for applet in ("sh", "id", "env", "mkdir"):
        (root / "bin" / applet).symlink_to("busybox")
    with attached(server.address, pod(root, agent), tmp_path) as worker:
        assert worker.properties["libc"][0].startswith("musl-1.")
        expect_work(server, worker)


def test_an_image_whose_variables_would_break_the_agent(server: Server, agent: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "libraries"
    hostile.mkdir()
    for name in ("libc.so.6", "libm.so.6", "libcrypto.so.3", "libpython3.11.so.1.0", "encodings.py", "grpc.py"):
        (hostile / name).write_bytes(b"\x7fELF of another kind")
    place = "/opt/of-the-image"
    variables = {
        "LD_LIBRARY_PATH": place, "LD_PRELOAD": f"{place}/libm.so.6", "PYTHONPATH": place, "PYTHONHOME": place,
        "OPENSSL_CONF": f"{place}/libc.so.6", "LANG": "xx_YY.ISO-8859-1", "LC_ALL": "xx_YY", "GCONV_PATH": place,
    }  # fmt: skip
    image = pod(root_of_debian("trixie"), agent, shown={PLACE: agent, place: hostile}, variables=variables)
    with attached(server.address, image, tmp_path) as worker:
        expect_work(server, worker)


def test_actions_are_kept_apart_in_an_image_that_cannot_be_written(server: Server, agent: Path, tmp_path: Path) -> None:
    configuration = tmp_path / "rexec.toml"
    configuration.write_text('[worker]\nisolation = "landlock"\n')
    place = "/etc/rexec.toml"
    image = pod(root_of_debian("bookworm"), agent, shown={PLACE: agent, place: configuration})
    with attached(server.address, image, tmp_path, options=("--config", place)) as worker:
        assert worker.properties["Isolation"] == ["landlock"]
        expect_work(server, worker)
        script = f"read line <{place}; echo $? $line; ls {PLACE}; read line </etc/os-release; echo $line"
        ran = run_action(server.address, ["/bin/sh", "-c", script])
        assert b"isolation" not in ran.stdout
        assert b"complete" not in ran.stdout
        assert b"PRETTY_NAME" in ran.stdout


def test_a_server_known_by_its_name_only(server: Server, agent: Path, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 rexec.builds.svc.cluster.local\n")
    image = pod(root_of_debian("bullseye"), agent, shown={PLACE: agent, "/etc/hosts": hosts})
    with attached(server.address, image, tmp_path, host="rexec.builds.svc.cluster.local") as worker:
        expect_work(server, worker)


def test_a_server_that_speaks_tls(agent: Path, nothing: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pair = authority.pair("server")
    configuration = tmp_path / "rexec.toml"
    configuration.write_text(f'[server.tls]\ncertificate = "{pair.certificate}"\nkey = "{pair.key}"\n')
    credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
    place = "/etc/authority.pem"
    image = pod(nothing, agent, shown={PLACE: agent, place: authority.file})
    with (
        running_server(tmp_path / "server", 0, ("--config", str(configuration)), credentials) as server,
        attached(server.address, image, tmp_path, options=("--tls-ca", place), authority=authority.file) as worker,
    ):
        assert worker.properties["ISA"] == ["x86-64"]


def test_the_first_process_of_a_container(server: Server, agent: Path, tmp_path: Path) -> None:
    """It is told to end like any other process, and waits for the processes that actions leave to it."""
    with attached(server.address, pod(root_of_debian("bookworm"), agent), tmp_path, first_process=True) as worker:
        (first,) = children_of(worker.process.pid)
        script = "for n in 1 2 3 4; do (setsid sh -c 'exit 3' & sleep 1000 &) ; done; echo left"
        assert run_action(server.address, ["/bin/sh", "-c", script]).stdout == b"left\n"
        expect_work(server, worker)
        assert Path(f"/proc/{first}/task/{first}/children").read_text().split() == []


def test_what_cannot_work_says_why(agent: Path, nothing: Path, tmp_path: Path) -> None:
    inside = pod(nothing, agent, scratch=())
    layer = tmp_path / "layer"
    layer.mkdir()
    for options, said in [
        (["--work-dir", "/rexec/work"], "directory /rexec/work cannot be used"),
        ([], "--work-dir"),  # a user without a name has no directory of his own either
    ]:
        arguments = [f"{PLACE}/run", "worker", "--server", "grpc://127.0.0.1:9", *options]
        ended = subprocess.run(
            inside.command(layer, arguments), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
        assert ended.returncode == 1
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_copy_is_made_once_and_replaces_another(bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "volume"

    def copy() -> str:
        copied = subprocess.run(
            [str(bundle / "run"), "copy-agent", str(target)],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        assert copied.returncode == 0, copied.stderr
        return copied.stdout

    assert "already" not in copy()
    assert "already" in copy()
    (target / "complete").write_text("another\n")
    (target / "lib" / "start.py").unlink()
    (target / ".incoming").mkdir()  # of a copy that was interrupted
    assert "already" not in copy()
    assert digest_of(target) == digest_of(bundle)
    assert sorted(path.name for path in target.iterdir()) == ["bin", "complete", "lib", "packages", "run"]


def test_the_same_environment_gives_the_same_bundle(bundle: Path, sources: Path, tmp_path: Path) -> None:
    assert digest_of(built(sources, tmp_path / "again")) == digest_of(bundle)
