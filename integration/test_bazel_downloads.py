"""Bazel's remote downloader: the server fetches what WORKSPACE names, and Bazel takes it from the store."""

import hashlib
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from integration.bazel import Bazel, cache_flags, running_bazel
from integration.server import Server, running_server
from integration.workspace import lay_out_workspace

_REPOSITORIES = """
load("@bazel_tools//tools/build_defs/repo:http.bzl", "http_archive", "http_file")

http_file(
    name = "a_file",
    urls = ["{url}/missing.txt", "{url}/file.txt"],
    sha256 = "{file_sha256}",
)

http_archive(
    name = "an_archive",
    urls = ["{url}/archive.tar.gz"],
    sha256 = "{archive_sha256}",
    build_file_content = "exports_files(['inner.txt'])",
)
"""
_CONFIGURATION = """
[assets]
fetch = true
allowed_urls = ["{url}/"]
{networks}
"""
FILE = b"a file from elsewhere\n"
INNER = b"out of an archive\n"


@dataclass
class Origin:
    """An HTTP server on this machine, and who asked it for what."""

    url: str
    files: dict[str, bytes]
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Path and User-Agent of each request."""


@contextmanager
def running_origin(files: dict[str, bytes]) -> Iterator[Origin]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            origin.asked.append((self.path, self.headers.get("User-Agent", "")))
            content = origin.files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *arguments: object) -> None:
            """What matters is in `asked`."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    origin = Origin(f"http://127.0.0.1:{server.server_port}", files)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield origin
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def archive() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("inner.txt")
        entry.size = len(INNER)
        tar.addfile(entry, io.BytesIO(INNER))
    return packed.getvalue()


@contextmanager
def fetching_server(folder: Path, origin: Origin, networks: str) -> Iterator[Server]:
    folder.mkdir()
    configuration = folder / "rexec.toml"
    configuration.write_text(_CONFIGURATION.format(url=origin.url, networks=networks))
    with running_server(folder / "server", slots=0, extra_flags=("--config", str(configuration))) as server:
        yield server


@contextmanager
def downloading_bazel(folder: Path, origin: Origin, server: Server) -> Iterator[Bazel]:
    workspace = lay_out_workspace("downloads", folder / "workspace")
    names = {
        "url": origin.url,
        "file_sha256": hashlib.sha256(FILE).hexdigest(),
        "archive_sha256": hashlib.sha256(origin.files["/archive.tar.gz"]).hexdigest(),
    }
    with (workspace / "WORKSPACE").open("a") as file:
        file.write(_REPOSITORIES.format(**names))
    flags = (*cache_flags(server.address), f"--experimental_remote_downloader=grpc://{server.address}")
    with running_bazel(workspace, folder / "bazel", flags) as bazel:
        yield bazel


def test_bazel_builds_from_what_the_server_fetched_for_it(tmp_path: Path) -> None:
    with (
        running_origin({"/file.txt": FILE, "/archive.tar.gz": archive()}) as origin,
        fetching_server(tmp_path / "rexec", origin, 'private_networks = ["127.0.0.1/32"]') as server,
    ):
        with downloading_bazel(tmp_path / "first", origin, server) as bazel:
            bazel.build("//:both").expect()
            assert (bazel.bin / "both.txt").read_bytes() == FILE + INNER
        assert sorted(path for path, _ in origin.asked) == ["/archive.tar.gz", "/file.txt", "/missing.txt"]
        # Bazel itself asked for nothing.
        assert {agent for _, agent in origin.asked} == {"rexec"}

        # Another machine gets it from the server, and the origin hears nothing of it.
        asked = len(origin.asked)
        with downloading_bazel(tmp_path / "second", origin, server) as bazel:
            bazel.build("//:both").expect()
            assert (bazel.bin / "both.txt").read_bytes() == FILE + INNER
        assert len(origin.asked) == asked


def test_this_machine_is_not_fetched_from_unless_the_configuration_says_so(tmp_path: Path) -> None:
    with running_origin({"/file.txt": FILE, "/archive.tar.gz": archive()}) as origin:
        with (
            fetching_server(tmp_path / "rexec", origin, "") as server,
            downloading_bazel(tmp_path / "first", origin, server) as bazel,
        ):
            built = bazel.build("//:both")
        assert built.exit_code != 0
        assert origin.asked == []


def test_a_failed_fetch_without_a_checksum_fails_the_build(tmp_path: Path) -> None:
    """Bazel 4.2 does not look at FetchBlobResponse.status: it would go on with an empty file."""
    with (
        running_origin({"/archive.tar.gz": archive()}) as origin,
        fetching_server(tmp_path / "rexec", origin, "") as server,
        downloading_bazel(tmp_path / "first", origin, server) as bazel,
    ):
        workspace = bazel.workspace / "WORKSPACE"
        # Bazel takes only https without a checksum, and the configuration allows only http.
        workspace.write_text(re.sub(r"    sha256 = .*\n", "", workspace.read_text()).replace("http://", "https://"))
        built = bazel.build("@a_file//file")
    assert built.exit_code != 0, built.stderr
    assert "not an origin that this server may fetch from" in built.stderr
