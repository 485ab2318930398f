"""Builds what a Dockerfile says without a container engine: each stage is a directory, RUN is a shell in it.

Only what deploy/docker/Dockerfile uses is known; anything else is an AssertionError that names it. `debian:NAME-slim` is the root
file system of that release that scripts/install-clients.sh makes. What apt-get has installed first in a stage is kept below
.clients/images for the next time, by what was said so far; all else is done anew.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.root_filesystem import ROOTS, RootFilesystem, root_of_debian

_IMAGES = ROOTS.parent / "images"
_SECONDS = 600
_MACHINE = "/run/machine"

_RUN = """\
set -eu
root=$1 machine=$2 place=$3
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 none "$root/dev"
for device in null zero full random urandom; do
    : >"$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount -t tmpfs none "$root/run"
mkdir "$root$place"
mount --bind "$machine" "$root$place"
shift 3
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Instruction:
    """One instruction, its line continuations joined."""

    name: str
    text: str


@dataclass
class Image:
    """A stage that was built."""

    root: Path
    variables: dict[str, str] = field(
        default_factory=lambda: {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    )
    user: str = "0:0"
    directory: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)

    def container(self, **given: Any) -> RootFilesystem:
        """What a container of this image sees; its root cannot be written."""
        return RootFilesystem(self.root, user=self.user, variables=self.variables, **given)

    def size_bytes(self) -> int:
        """Of its files, each counted once however many names it has."""
        said = subprocess.run(["du", "-sxb", str(self.root)], capture_output=True, text=True, check=True)
        return int(said.stdout.split()[0])


def parsed(text: str) -> list[tuple[str, str, list[Instruction]]]:
    """The stages: what each begins with, its name and its instructions."""
    stages: list[tuple[str, str, list[Instruction]]] = []
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        if not name:
            continue
        if name == "FROM":
            origin, word, stage = rest.split()
            assert word == "AS", line
            stages.append((origin, stage, []))
        else:
            stages[-1][2].append(Instruction(name, rest.strip()))
    return stages


class Build:
    """All stages of one file."""

    def __init__(self, dockerfile: Path, context: Path, folder: Path) -> None:
        """Build them below `folder`. Raises AssertionError with what a failing command says."""
        self.images: dict[str, Image] = {}
        self._context = context
        self._folder = folder
        self._machine, self._of_machine = _machine(folder / "machine")
        stages = parsed(dockerfile.read_text())
        self._kept: set[str] = set()
        for origin, name, instructions in stages:
            self.images[name] = self._stage(origin, folder / name, instructions)
        for path in _IMAGES.iterdir():
            if path.name not in self._kept:
                shutil.rmtree(path)

    def _stage(self, origin: str, root: Path, instructions: Sequence[Instruction]) -> Image:
        image = Image(root)
        # What apt-get installs is the same for the same words, until the release gets an update.
        is_kept = bool(instructions) and any(each.name == "RUN" and "apt-get" in each.text for each in instructions)
        upto = next((at for at, each in enumerate(instructions) if each.name == "RUN"), -1) + 1 if is_kept else 0
        key = hashlib.sha256(repr((origin, instructions[:upto])).encode()).hexdigest()[:16]
        kept = _IMAGES / key
        if is_kept and kept.exists():
            _copy_tree(kept, root)
            for each in instructions[:upto]:
                if each.name != "RUN":
                    self._do(image, each)
        else:
            self._begin(origin, root)
            for each in instructions[:upto]:
                self._do(image, each)
            if is_kept:
                incoming = _IMAGES / f"{key}.incoming"
                shutil.rmtree(incoming, ignore_errors=True)
                _copy_tree(root, incoming)
                incoming.rename(kept)
        self._kept.add(key)
        for each in instructions[upto:]:
            self._do(image, each)
        return image

    def _begin(self, origin: str, root: Path) -> None:
        if origin == "scratch":
            root.mkdir()
            return
        distribution, _, tag = origin.partition(":")
        assert (distribution, tag[-5:]) == ("debian", "-slim"), f"FROM {origin} is not known here"
        _copy_tree(root_of_debian(tag.removesuffix("-slim")), root)

    def _do(self, image: Image, instruction: Instruction) -> None:
        text = instruction.text
        match instruction.name:
            case "RUN":
                self._run(image, text)
            case "COPY":
                self._copy(image, shlex.split(text))
            case "ENV":
                image.variables.update(_pairs(text))
            case "LABEL":
                image.labels.update(_pairs(text))
            case "USER":
                image.user = text
            case "WORKDIR":
                image.directory = text
                if not _inside(image.root, text).exists():
                    _inside(image.root, text).mkdir(parents=True)
            case "ENTRYPOINT":
                image.entrypoint = json.loads(text)
            case "CMD":
                image.arguments = json.loads(text)
            case "EXPOSE":
                assert 0 < int(text) < 65536
            case name:
                raise AssertionError(f"{name} is not known here")

    def _run(self, image: Image, script: str) -> None:
        assert image.user == "0:0", "RUN after USER is not known here"
        variables = {**image.variables, **self._of_machine}
        command = [
            *("env", "-i", *(f"{name}={value}" for name, value in variables.items())),
            *("unshare", "--mount", "/bin/sh", "-c", _RUN, "sh", str(image.root), str(self._machine), _MACHINE),
            *("/bin/sh", "-c", 'cd "$1" && eval "$2"', "sh", image.directory, script),
        ]  # fmt: skip
        resolv = image.root / "etc" / "resolv.conf"
        resolv.unlink(missing_ok=True)
        shutil.copyfile("/etc/resolv.conf", resolv)
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, f"RUN {script} ended with {ran.returncode}:\n{ran.stdout[-4000:]}"

    def _copy(self, image: Image, words: Sequence[str]) -> None:
        origin_root = self._context
        words = list(words)
        if words[0].startswith("--from="):
            origin_root = self.images[words.pop(0).removeprefix("--from=")].root
        *origins, target = words
        assert not any(word.startswith("--") for word in words), f"COPY {words} is not known here"
        for origin in origins:
            source = _inside(origin_root, origin)
            place = _inside(image.root, target if target.startswith("/") else f"{image.directory}/{target}")
            if source.is_dir():  # its contents, not itself
                place.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-a", f"{source}/.", str(place)], check=True)
            else:
                if target.endswith("/"):
                    place.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)


def _machine(folder: Path) -> tuple[Path, dict[str, str]]:
    """What pip is told on this machine, as files in that folder and the variables that name them."""
    folder.mkdir()
    variables: dict[str, str] = {}
    given = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for configuration in (Path.home() / ".config/pip/pip.conf", Path("/etc/pip.conf")):
        if configuration.exists():
            given.setdefault("PIP_CONFIG_FILE", str(configuration))
    for name, value in given.items():
        if value.startswith("/") and Path(value).is_file():
            shutil.copyfile(value, folder / name)
            variables[name] = f"{_MACHINE}/{name}"
        elif not value.startswith("/"):
            variables[name] = value
    return folder, variables


def _pairs(text: str) -> Mapping[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(text))


def _inside(root: Path, path: str) -> Path:
    found = root / path.lstrip("/")
    assert ".." not in Path(path).parts
    return found


def _copy_tree(origin: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(origin), str(target)], check=True)
