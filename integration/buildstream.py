"""Drives BuildStream as a user would, with a cache directory of its own for each imagined machine.

Each command starts its own buildbox-casd and ends it; nothing stays between commands but the cache directory.
"""

import os
import re
import shutil
import subprocess
import time
from itertools import count
from pathlib import Path

from integration.outcome import Outcome
from integration.process import tail

INSTALL_COMMAND = "make clients"
COMMAND_DEADLINE_SECONDS = 180.0
_ENVIRONMENT = Path(__file__).parent.parent / ".clients" / "buildstream" / "bin"
_BUSYBOX = Path("/bin/busybox")
_APPLETS = ("sh", "cat", "chmod", "cp", "id", "ln", "mkdir", "test")

_CONFIGURATION = """\
cachedir: {folder}/cache
logdir: {folder}/logs
sourcedir: {folder}/sources
workspacedir: {folder}/workspaces
"""
_CACHES = """\
{kind}:
  override-project-caches: true
  servers:
  - url: http://{address}
    instance-name: main
    push: true
"""
_REMOTE_EXECUTION = """\
remote-execution:
  execution-service:
    url: http://{address}
    instance-name: main
  storage-service:
    url: http://{address}
    instance-name: main
  action-cache-service:
    url: http://{address}
    instance-name: main
"""


class BuildStream:
    """One machine: an empty cache directory below `folder`, and the server at `address` for artifacts and sources."""

    def __init__(
        self, project: Path, folder: Path, address: str, *, remote_execution: bool = False, caches: bool = True
    ) -> None:
        """With `remote_execution` the server builds too, instead of this machine; without `caches` it keeps no artifacts or
        sources for it.

        Raises AssertionError with the command to install it when BuildStream is not there."""
        self._program = _ENVIRONMENT / "bst"
        if not self._program.exists():
            raise AssertionError(f"{self._program} is not installed: run `{INSTALL_COMMAND}`")
        folder.mkdir(parents=True)
        self._project = project
        self._folder = folder
        self._numbers = count(1)
        kinds = ("artifacts", "source-caches") if caches else ()
        servers = [_CACHES.format(kind=kind, address=address) for kind in kinds]
        remote = _REMOTE_EXECUTION.format(address=address) if remote_execution else ""
        (folder / "buildstream.conf").write_text(_CONFIGURATION.format(folder=folder) + "".join(servers) + remote)

    def build(self, element: str) -> Outcome:
        return self._run("build", element)

    def fetch_sources(self, element: str) -> Outcome:
        return self._run("source", "fetch", element)

    def checkout(self, element: str, directory: Path) -> None:
        """Lay an artifact out in the new `directory`. Raises AssertionError if it fails."""
        self._run("artifact", "checkout", element, "--deps", "none", "--directory", str(directory)).expect()

    def _run(self, *arguments: str) -> Outcome:
        command = (
            str(self._program),
            "--no-interactive",
            "--no-colors",
            "--config",
            str(self._folder / "buildstream.conf"),
            *arguments,
        )
        environment = {
            # buildbox-casd and its sandbox lie beside bst.
            "PATH": f"{_ENVIRONMENT}{os.pathsep}/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
        }
        stem = self._folder / f"command-{next(self._numbers):03d}"
        begin = time.monotonic()
        with stem.with_suffix(".stdout").open("wb") as stdout, stem.with_suffix(".stderr").open("wb") as stderr:
            started = subprocess.Popen(
                command, cwd=self._project, env=environment, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr
            )
            try:
                started.wait(COMMAND_DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                started.terminate()  # bst ends its casd then
                started.wait(30)
                text = tail(stem.with_suffix(".stderr").read_text(errors="replace"))
                raise AssertionError(
                    f"{' '.join(command)} was still running after {COMMAND_DEADLINE_SECONDS:g} s:\n{text}"
                ) from None
        return Outcome(
            command,
            started.returncode,
            stem.with_suffix(".stdout").read_text(errors="replace"),
            stem.with_suffix(".stderr").read_text(errors="replace"),
            time.monotonic() - begin,
        )


def processed(outcome: Outcome, queue: str) -> int:
    """How many elements a queue processed, from the summary at the end. Raises AssertionError if it is not in there."""
    found = re.search(rf"^\s*{queue} Queue:\s+processed (\d+), skipped \d+, failed 0\s*$", outcome.stderr, re.MULTILINE)
    if found is None:
        raise AssertionError(
            f"no line of the {queue} queue without failures; stderr ends with:\n{tail(outcome.stderr)}"
        )
    return int(found[1])


def lay_out_project(destination: Path, remote_file: Path) -> Path:
    """Write a project of three elements into the new directory `destination`: a root of busybox; `hello.bst`, which
    makes files, a link and a script, one of them from a source that BuildStream downloads from `remote_file`; and
    `whole.bst`, a script that reads what the second made and tells where it runs."""
    if not _BUSYBOX.exists():
        raise AssertionError(f"{_BUSYBOX} is not installed: run `{INSTALL_COMMAND}`")
    shutil.copytree(Path(__file__).parent / "workspaces" / "buildstream", destination)
    programs = destination / "files" / "root" / "bin"
    programs.mkdir(parents=True)
    shutil.copy(_BUSYBOX, programs / "busybox")
    for applet in _APPLETS:
        (programs / applet).symlink_to("busybox")
    element = destination / "elements" / "hello.bst"
    element.write_text(element.read_text().replace("@REMOTE_FILE@", remote_file.as_uri()))
    return destination
