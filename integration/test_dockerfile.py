"""The images of deploy/docker/Dockerfile: built step by step without a container engine, then run as a cluster would run them.

The root is read-only, the user is that of the image, and only what the image says is in the environment.
"""

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.dockerfile import Build, Image, parsed, size_bytes
from integration.image_worker import attached, pod
from integration.process import Process
from integration.remote_action import run_action
from integration.root_filesystem import root_of_debian
from integration.server import READY_SECONDS, answers_capabilities, free_port
from integration.waiting import wait_until
from rexec import __version__

_CHECKOUT = Path(__file__).parent.parent
_DOCKERFILE = _CHECKOUT / "deploy" / "docker" / "Dockerfile"
_USER = 65532
_SECONDS = 60
_C = b"""
#include <stdio.h>
int main(void) { puts("compiled"); return 0; }
"""
_CC = b"""
#include <iostream>
int main() { std::cout << "compiled" << std::endl; }
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Image]]:
    """Each stage, by name."""
    folder = tmp_path_factory.mktemp("images")
    yield Build(_DOCKERFILE, _CHECKOUT, folder).images
    # Several hundred megabytes each; nothing is mounted here, and no other file system would be entered.
    subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=True)


def said(image: Image, layer: Path, *arguments: str) -> str:
    """What a container of the image prints. Raises AssertionError if it fails."""
    layer.mkdir()
    command = image.container().command(layer, [*image.entrypoint, *arguments])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def address(images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of `rexec serve` in a container."""
    image, folder = images["server"], tmp_path_factory.mktemp("serve")
    where = f"127.0.0.1:{free_port()}"
    # What the image starts by itself, but on an address of this machine alone.
    arguments = [where if word == "0.0.0.0:8980" else word for word in image.arguments]
    assert where in arguments
    container = image.container(scratch=["/var/lib/rexec"])
    (folder / "layer").mkdir()
    serve = Process(container.command(folder / "layer", [*image.entrypoint, *arguments]), folder / "log", cwd=Path("/"))

    def answers() -> bool:
        serve.expect_running()
        return answers_capabilities(where)

    try:
        wait_until(answers, "rexec serve in its container", READY_SECONDS)
        yield where
        assert serve.stop() in (0, -15), serve.log_tail()
    finally:
        if serve.is_running():
            serve.kill()


@pytest.mark.parametrize("name", ["server", "agent", "worker"])
def test_each_image_starts_for_a_user_who_is_not_root(images: dict[str, Image], tmp_path: Path, name: str) -> None:
    image = images[name]
    assert said(image, tmp_path / "layer", "--version") == f"rexec, version {__version__}\n"
    assert image.user == f"{_USER}:{_USER}"  # in figures: else a cluster cannot see that it is not root
    assert image.labels["org.opencontainers.image.licenses"] == "Apache-2.0"


@pytest.mark.parametrize(("name", "most_megabytes"), [("server", 380), ("agent", 80), ("worker", 420)])
def test_images_are_small(images: dict[str, Image], name: str, most_megabytes: int) -> None:
    """Above what the release itself takes, which machines share among images."""
    base = 0 if name == "agent" else size_bytes(root_of_debian("bookworm"))
    megabytes = (images[name].size_bytes() - base) / 1e6
    print(f"{name}: {megabytes:.0f} MB above its base of {base / 1e6:.0f} MB")
    assert megabytes < most_megabytes


def test_what_only_builds_need_is_not_in_the_server(images: dict[str, Image]) -> None:
    image = images["server"]
    assert [
        path for path in ("usr/bin/gcc", "opt/rexec/venv/bin/pip", "src", "opt/rexec/agent") if image.has(path)
    ] == []
    assert image.has("usr/bin/python3")
    assert image.beneath is not None
    assert list((image.beneath / "var/lib/apt/lists").iterdir()) == []
    assert (image.beneath / "var/lib/rexec").stat().st_uid == _USER


def test_what_is_imported_when_it_is_asked_for_is_there(images: dict[str, Image], tmp_path: Path) -> None:
    image = images["server"]
    (tmp_path / "layer").mkdir()
    script = "import aiohttp, cryptography.x509, jwt, kubernetes.aio, numpy, cas.chunking_fastcdc, rexec.top_command"
    command = image.container().command(tmp_path / "layer", ["python", "-c", script])
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert image.has("opt/rexec/venv/lib/python3.11/site-packages/rexec/agent_run.c")


def test_a_worker_of_the_image_compiles_for_a_server_of_the_image(
    images: dict[str, Image], address: str, tmp_path: Path
) -> None:
    image = images["worker"]
    container = image.container(scratch=["/rexec/work"])
    with attached(address, container, tmp_path, program=image.entrypoint) as worker:
        assert worker.properties["gcc"][0].startswith("12.")
        assert worker.properties["g++"][0].startswith("12.")
        for compiler, source, text in (("gcc", "x.c", _C), ("g++", "x.cc", _CC)):
            script = f"{compiler} -O1 -o x {source} && ./x"
            ran = run_action(
                address, ["/bin/sh", "-c", script], {source: text}, ["x"], {"gcc": worker.properties["gcc"][0]}
            )
            assert (ran.exit_code, ran.stdout, ran.stderr) == (0, b"compiled\n", b"")
            assert ran.outputs["x"].startswith(b"\x7fELF")
            assert ran.worker == worker.name


@pytest.mark.parametrize("release", ["bullseye", "trixie"])
def test_the_agent_image_makes_a_worker_of_an_image_that_knows_nothing_of_it(
    images: dict[str, Image], address: str, tmp_path: Path, release: str
) -> None:
    agent, volume = images["agent"], tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, _USER, _USER)
    (tmp_path / "init").mkdir()
    init = agent.container(volumes={"/rexec/agent": volume})
    copied = subprocess.run(
        init.command(tmp_path / "init", [*agent.entrypoint, *agent.arguments]),
        capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    assert copied.returncode == 0, copied.stderr
    with attached(address, pod(root_of_debian(release), volume), tmp_path) as worker:
        ran = run_action(address, ["/bin/sh", "-c", "cat word > out"], {"word": b"hello"}, ["out"])
        assert (ran.exit_code, ran.outputs, ran.worker) == (0, {"out": b"hello"}, worker.name)


def test_all_that_is_copied_is_sent_to_the_builder() -> None:
    rules = [
        line for line in (_DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines() if line[0] != "#"
    ]
    stages = parsed(_DOCKERFILE.read_text())
    copied = [
        origin
        for _, _, instructions in stages
        for each in instructions
        if each.name == "COPY" and "--from" not in each.text
        for origin in each.text.split()[:-1]
    ]
    assert copied
    for path in copied:
        is_ignored = False
        for rule in rules:
            if fnmatch.fnmatch(path, rule.removeprefix("!")):
                is_ignored = not rule.startswith("!")
        assert not is_ignored, path
        assert (_CHECKOUT / path).exists(), path
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied)


def test_an_instruction_that_is_not_known_fails(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM scratch AS x\nADD a \\\n  b\n")
    assert [(origin, name, [each.name for each in found]) for origin, name, found in parsed(file.read_text())] == [
        ("scratch", "x", ["ADD"])
    ]
    (tmp_path / "images").mkdir()
    with pytest.raises(AssertionError, match="ADD is not known here"):
        Build(file, tmp_path, tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
