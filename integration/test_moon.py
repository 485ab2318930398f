"""moon's remote cache with compression: results of its own making in the action cache, compressed blobs both ways."""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.process import tail
from integration.relay import running_relay
from integration.server import Server, running_server

_PROGRAM = (
    Path(__file__).parent.parent / ".clients" / "moon" / "node_modules" / "@moonrepo" / "core-linux-x64-gnu" / "moon"
)

_WORKSPACE = """\
projects:
  app: 'app'
telemetry: false
remote:
  host: 'grpc://{address}'
  api: grpc
  cache:
    instanceName: main
    compression: {compression}
"""
_PROJECT = """\
language: bash
tasks:
  make:
    command: 'sh make.sh'
    inputs: ['make.sh']
    outputs: ['out']
"""
# The stamp differs with every run, so an equal one was not made again. The large file compresses to a hundredth.
_SCRIPT = """\
set -e
mkdir -p out
cat /proc/sys/kernel/random/uuid > out/stamp.txt
printf '#!/bin/sh\\necho ran\\n' > out/run.sh
chmod 755 out/run.sh
yes 'a line that is there again and again in this file' | head -n 120000 > out/large.txt
"""
LARGE_BYTES = 120000 * len("a line that is there again and again in this file\n")


@pytest.fixture(scope="module")
def cache_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without workers: moon runs its tasks itself."""
    with running_server(tmp_path_factory.mktemp("server"), slots=0) as server:
        yield server


class Moon:
    """moon in one workspace, which it insists on being a git repository."""

    def __init__(self, folder: Path, address: str, compression: str) -> None:
        if not _PROGRAM.exists():
            raise AssertionError(f"{_PROGRAM} is not installed: run `make clients`")
        self._home = folder / "home"
        self._workspace = folder / "workspace"
        self.out = self._workspace / "app" / "out"
        self._home.mkdir(parents=True)
        (self._workspace / ".moon").mkdir(parents=True)
        (self._workspace / "app").mkdir()
        (self._workspace / ".moon" / "workspace.yml").write_text(
            _WORKSPACE.format(address=address, compression=compression)
        )
        (self._workspace / "app" / "moon.yml").write_text(_PROJECT)
        (self._workspace / "app" / "make.sh").write_text(_SCRIPT)
        for command in (
            ("init", "--quiet"),
            ("add", "--all"),
            ("-c", "user.name=builder", "-c", "user.email=builder@localhost", "commit", "--quiet", "-m", "Begin"),
        ):
            self._run("git", *command)

    def make(self) -> str:
        """Run the task; what moon said."""
        return self._run(str(_PROGRAM), "run", "app:make")

    def forget(self) -> None:
        """Delete the outputs and all that moon remembers of them on this machine."""
        shutil.rmtree(self.out)
        shutil.rmtree(self._workspace / ".moon" / "cache")

    def _run(self, *command: str) -> str:
        ended = subprocess.run(
            command,
            cwd=self._workspace,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self._home),
                "LANG": "C.UTF-8",
                "MOON_TOOLCHAIN_FORCE_GLOBALS": "1",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        if ended.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {ended.returncode}:\n{tail(ended.stdout)}")
        return ended.stdout


def outputs(moon: Moon) -> dict[str, tuple[bytes, bool]]:
    """Content, and whether it is executable, of each output."""
    return {
        path.name: (path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR)) for path in sorted(moon.out.iterdir())
    }


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_a_result_comes_back_from_the_cache_as_it_was(cache_server: Server, tmp_path: Path, compression: str) -> None:
    with running_relay(cache_server.address) as relay:
        moon = Moon(tmp_path, relay.address, compression)
        # Another task for each compression, or the second one would find what the first one left.
        (moon.out.parent / "make.sh").write_text(f"{_SCRIPT}# {compression}\n")
        made = moon.make()
        assert "cached" not in made
        first = outputs(moon)
        sent_bytes, received_bytes = relay.from_client_bytes, relay.from_server_bytes
        assert len(first["large.txt"][0]) == LARGE_BYTES
        assert first["run.sh"][1]
        moon.forget()

        again = moon.make()

        assert "cached from remote" in again, again
        assert outputs(moon) == first
        received_bytes = relay.from_server_bytes - received_bytes
    if compression == "zstd":
        assert sent_bytes < LARGE_BYTES / 10
        assert received_bytes < LARGE_BYTES / 10
    else:
        # The same relay sees all of it when nothing is compressed, and only once: the blob is there afterwards.
        assert received_bytes > LARGE_BYTES
