"""A real server of the S3 protocol (SeaweedFS) as a process, which keeps its port and its objects over `kill` and `start`."""

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.process import Process
from integration.server import free_port
from integration.waiting import wait_until

INSTALL_COMMAND = "pip install -e .[dev]"
READY_SECONDS = 60.0
ACCESS_KEY = ("rexec", "not much of a secret")


class ObjectServer:
    """`weed server -s3` on free loopback ports, with one access key."""

    def __init__(self, folder: Path) -> None:
        """Raises AssertionError with the command that installs it, and with its log when it does not get ready."""
        program = Path(sys.executable).with_name("weed")
        found = program if program.exists() else shutil.which("weed")
        if found is None:
            raise AssertionError(f"weed is not installed: run `{INSTALL_COMMAND}`")
        self._folder = folder
        (folder / "objects").mkdir(parents=True)
        rights = {"name": "rexec", "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
        keys = [{"accessKey": ACCESS_KEY[0], "secretKey": ACCESS_KEY[1].replace(" ", "-")}]
        (folder / "s3.json").write_text(json.dumps({"identities": [{**rights, "credentials": keys}]}))
        self.access_key_file = folder / "access-key"
        self.access_key_file.write_text(f"{ACCESS_KEY[0]}\n{keys[0]['secretKey']}\n")
        self._port = free_port()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        ports = {f"{part}.port{kind}": free_port() for part in ("master", "volume", "filer") for kind in ("", ".grpc")}
        self._command = (
            str(found),
            f"-logdir={folder}",
            "server",
            f"-dir={folder / 'objects'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-filer",
            "-s3",
            f"-s3.port={self._port}",
            f"-s3.port.grpc={free_port()}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.iam=false",
            f"-s3.config={folder / 's3.json'}",
            "-volume.max=16",
            "-master.volumeSizeLimitMB=128",
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in ports.items()),
        )
        self.process = self._start()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()

    def start(self) -> None:
        """Start it again after `kill`, and wait until it answers."""
        self.process = self._start()

    def _start(self) -> Process:
        process = Process(self._command, self._folder / "weed.log")
        try:
            wait_until(lambda: self._answers(process), f"the object server on {self.endpoint}", READY_SECONDS)
        except BaseException:
            process.kill()
            raise
        return process

    def _answers(self, process: Process) -> bool:
        process.expect_running()
        try:
            urllib.request.urlopen(f"{self.endpoint}/healthz", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True


@contextmanager
def running_object_server(folder: Path) -> Iterator[ObjectServer]:
    """A server that is gone at the end of the block."""
    server = ObjectServer(folder)
    try:
        yield server
    finally:
        if server.process.is_running():
            server.kill()
