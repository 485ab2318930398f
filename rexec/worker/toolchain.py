"""Which compilers there are where actions look for them: version of each, and the digest of its program.

A program is looked for in the directories of the actions' PATH, under its own name and under that name with a version
(gcc, gcc-12). What the plain name runs comes first. Its version is what `PROGRAM --version` says, asked anew at every start,
because the program that is found may only pass on to another one (rustup, ccache), whose change nothing else shows. The digest is
that of the file that is found, behind its symlinks, and is remembered in the work directory for as long as the file is the same.

What a program prints is bounded, and only a version is taken from it. One that does not answer in time, or not with a version, is
not announced.
"""

from __future__ import annotations

import hashlib
import os
import re
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

ANSWER_SECONDS: Final = 2.0
"""For one program to say its version."""

ALL_SECONDS: Final = 10.0
"""For all of them; who comes after that is not announced."""

MAX_VERSIONS: Final = 3
"""Of one program."""

MAX_OUTPUT_BYTES: Final = 16 << 10
"""Of what a program prints."""

MAX_PROGRAM_BYTES: Final = 1 << 30
"""A larger file is no compiler, and would take seconds to hash."""

_CHUNK_BYTES: Final = 1 << 20
_MAX_ENTRIES: Final = 20_000
"""Names in one directory of the PATH."""

_VERSION = re.compile(r"(?<![\w.])\d{1,8}(?:\.\d{1,8}){1,3}")
_IN_BRACKETS = re.compile(r"\([^()]*\)")
"""Where packagers put versions of their own."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program that was found."""

    path: str
    version: str
    digest: str
    """SHA-256 of the file, in hexadecimal digits."""


class _Remembered(msgspec.Struct, frozen=True):
    """A file that was hashed."""

    size: int
    mtime_ns: int
    inode: int
    digest: str


class Toolchain:
    """The programs of a machine. Everything here blocks, for ALL_SECONDS at most, and is called in a thread."""

    def __init__(self, environment: Mapping[str, str], memory: Path) -> None:
        """`environment` is that of the actions, `memory` a file for the digests, which need not be there."""
        self._environment = dict(environment)
        self._memory = memory
        self._deadline = time.monotonic() + ALL_SECONDS
        self._known = _read(memory)
        self._used: dict[str, _Remembered] = {}

    def find(self, names: Sequence[str]) -> dict[str, list[Program]]:
        """Those of these programs that are there, each version once, the one that the plain name runs first."""
        found: dict[str, list[Program]] = {}
        for name in names:
            programs: dict[str, Program] = {}
            for path in self._paths(name):
                if len(programs) == MAX_VERSIONS or time.monotonic() >= self._deadline:
                    break
                program = self._program(path)
                if program is not None:
                    programs.setdefault(program.version, program)
            if programs:
                found[name] = list(programs.values())
        if self._used != self._known:
            _write(self._memory, self._used)
        return found

    def _paths(self, name: str) -> Iterator[str]:
        """Where a program may be, in the order of the PATH, the plain name before all others."""
        folders = [folder for folder in self._environment.get("PATH", "").split(":") if folder.startswith("/")]
        seen: set[str] = set()  # /bin and /usr/bin are one directory on many machines
        versioned = re.compile(re.escape(name) + r"-\d[\d.]{0,10}")
        for path in (
            *(f"{folder}/{name}" for folder in folders),
            *(f"{folder}/{entry}" for folder in folders for entry in _names(folder) if versioned.fullmatch(entry)),
        ):
            folder, entry = os.path.split(path)
            place = os.path.join(os.path.realpath(folder), entry)
            if place not in seen:
                seen.add(place)
                yield path

    def _program(self, path: str) -> Program | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode) or not os.access(path, os.X_OK) or status.st_size > MAX_PROGRAM_BYTES:
            return None
        seconds = min(ANSWER_SECONDS, self._deadline - time.monotonic())
        version = version_in(_answer([path, "--version"], self._environment, seconds))
        if not version:
            return None
        digest = self._digest(os.path.realpath(path))
        return Program(path, version, digest) if digest else None

    def _digest(self, path: str) -> str:
        """Empty if the file cannot be read, or not in time."""
        try:
            with open(path, "rb") as file:
                status = os.fstat(file.fileno())
                known = self._known.get(path)
                is_same = known is not None and (known.size, known.mtime_ns, known.inode) == (
                    status.st_size, status.st_mtime_ns, status.st_ino,
                )  # fmt: skip
                if known is None or not is_same:
                    sha256 = hashlib.sha256()
                    while chunk := file.read(_CHUNK_BYTES):
                        sha256.update(chunk)
                        if time.monotonic() >= self._deadline:
                            return ""
                    known = _Remembered(status.st_size, status.st_mtime_ns, status.st_ino, sha256.hexdigest())
        except OSError:
            return ""
        self._used[path] = known
        return known.digest


def version_in(text: str) -> str:
    """The version that a program tells of itself, such as 12.2.0; empty if there is none."""
    for line in text.splitlines():
        found = _VERSION.search(_IN_BRACKETS.sub(" ", line)) or _VERSION.search(line)
        if found is not None:
            return found[0]
    return ""


def _answer(command: Sequence[str], environment: Mapping[str, str], seconds: float) -> str:
    """What a command prints; empty if it fails, takes too long or prints too much, which no compiler does. Whatever it starts
    is ended with it."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError):
        return ""
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    output = b""
    ended = False
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while len(output) < MAX_OUTPUT_BYTES and selector.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(process.stdout.fileno(), MAX_OUTPUT_BYTES - len(output))
                if not piece:
                    ended = True
                    break
                output += piece
        if ended:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                ended = False
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        code = process.wait()
    return output.decode("ascii", "replace") if ended and code == 0 else ""


def _names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for _, entry in zip(range(_MAX_ENTRIES), entries, strict=False))
    except OSError:
        return []


def _read(memory: Path) -> dict[str, _Remembered]:
    try:
        return msgspec.json.decode(memory.read_bytes(), type=dict[str, _Remembered])
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _write(memory: Path, known: Mapping[str, _Remembered]) -> None:
    fresh = memory.with_suffix(".new")
    with suppress(OSError, UnicodeEncodeError):  # then they are hashed again the next time
        fresh.write_bytes(msgspec.json.encode(known))
        os.replace(fresh, memory)
