"""Builds what a Dockerfile says without a container engine: each stage is a layer over a directory, RUN is a shell in there.

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
root=$1 beneath=$2 merged=$3 machine=$4 place=$5
shift 5
if [ -n "$beneath" ]; then
    mkdir -p "$root.work"
    mount -t overlay -o "lowerdir=$beneath,upperdir=$root,workdir=$root.work" none "$merged"
else
    mount --bind "$root" "$merged"
fi
rm -f "$merged/etc/resolv.conf"
cp /etc/resolv.conf "$merged/etc/resolv.conf"
mount -t proc proc "$merged/proc"
mount -t tmpfs -o mode=755 none "$merged/dev"
for device in null zero full random urandom; do
    : >"$merged/dev/$device"
    mount --bind "/dev/$device" "$merged/dev/$device"
done
mount -t tmpfs none "$merged/run"
mkdir "$merged$place"
mount --bind "$machine" "$merged$place"
exec "$@"
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
    """What it has of its own."""
    beneath: Path | None = None
    """What it is laid over, and never changes."""
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
        return RootFilesystem(self.root, self.beneath, user=self.user, variables=self.variables, **given)

    def has(self, path: str) -> bool:
        """Whether there is something in the image under this path. What a layer takes away is not looked for."""
        return any((folder / path.lstrip("/")).exists() for folder in (self.root, self.beneath) if folder is not None)

    def size_bytes(self) -> int:
        """Of the files of both, each counted once however many names it has."""
        return size_bytes(self.root) + (size_bytes(self.beneath) if self.beneath is not None else 0)


def size_bytes(folder: Path) -> int:
    """Of all files in there, each counted once however many names it has."""
    said = subprocess.run(["du", "-sxb", str(folder)], capture_output=True, text=True, check=True)
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
        self._merged = folder / "merged"
        self._merged.mkdir()
        _IMAGES.mkdir(parents=True, exist_ok=True)
        stages = parsed(dockerfile.read_text())
        self._kept: set[str] = set()
        for origin, name, instructions in stages:
            self.images[name] = self._stage(origin, folder / name, instructions)
        for path in _IMAGES.iterdir():
            if path.name not in self._kept:
                subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)

    def _stage(self, origin: str, root: Path, instructions: Sequence[Instruction]) -> Image:
        image = Image(root)
        root.mkdir()
        first = 0
        if origin != "scratch":
            # What apt-get installs is the same for the same words, until the release gets an update.
            first = 1 + next(at for at, each in enumerate(instructions) if each.name == "RUN")
            image.beneath = self._base(origin, instructions[:first])
        for at, each in enumerate(instructions):
            if at >= first or each.name != "RUN":
                self._do(image, each)
        return image

    def _base(self, origin: str, instructions: Sequence[Instruction]) -> Path:
        """A root file system in which these have been carried out."""
        assert {each.name for each in instructions} <= {"LABEL", "RUN"}, "something is copied before the first RUN"
        key = hashlib.sha256(repr((origin, instructions)).encode()).hexdigest()[:16]
        self._kept.add(key)
        kept = _IMAGES / key
        if not kept.exists():
            distribution, _, tag = origin.partition(":")
            assert (distribution, tag[-5:]) == ("debian", "-slim"), f"FROM {origin} is not known here"
            incoming = _IMAGES / f"{key}.incoming"
            subprocess.run(["rm", "-rf", "--one-file-system", str(incoming)], check=True)
            subprocess.run(["cp", "-a", str(root_of_debian(tag.removesuffix("-slim"))), str(incoming)], check=True)
            for each in instructions:
                self._do(Image(incoming), each)
            incoming.rename(kept)
        return kept

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
                if not image.has(text):
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
        chroot = shutil.which("chroot")
        assert chroot is not None, "chroot is not installed: apt-get install coreutils"
        command = [
            *("unshare", "--mount", "/bin/sh", "-c", _RUN, "sh", str(image.root), str(image.beneath or "")),
            *(str(self._merged), str(self._machine), _MACHINE),
            *("env", "-i", *(f"{name}={value}" for name, value in variables.items()), chroot, str(self._merged)),
            *("/bin/sh", "-c", 'cd "$1" && eval "$2"', "sh", image.directory, script),
        ]  # fmt: skip
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
            assert source.exists(), f"{origin} is not there to be copied"
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
