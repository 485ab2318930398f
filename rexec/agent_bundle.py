"""The self-contained worker agent: a directory that runs `rexec worker` in any Linux root file system of one architecture.

    python -m rexec.agent_bundle DIR

gathers what the interpreter that runs this needs for `rexec worker`, and nothing of what only servers need:

    run                 a static program (rexec/agent_run.c) that starts the rest, wherever DIR is
    bin/python3         the interpreter
    lib/                all shared libraries, the C library too, its loader as lib/rexec-agent
    lib/python3.N/      the standard library, compiled, without tests, installers and graphics
    packages/           rexec and the packages that a worker imports, compiled
    complete            the bundle's digest, which says what is in it; written last

The same environment gives the same bytes. What is missing in the end is found here and not by users: at last the bundle has to
import everything of the worker, with nothing but itself to import from.
"""

from __future__ import annotations

import hashlib
import os
import py_compile
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Final

DISTRIBUTIONS: Final = (
    "blake3", "brotli", "click", "googleapis-common-protos", "grpcio", "msgspec", "prometheus-client", "protobuf",
    "structlog", "typing_extensions", "uvloop", *(("backports.zstd",) if sys.version_info < (3, 14) else ()),
)  # fmt: skip
"""What a worker imports. Not numpy and rich, which are as large as all of these: blobs are cut into chunks by servers, and
tables are drawn for people."""

OWN_PACKAGES: Final = ("protos", "cas", "rexec")

_UNUSED_MODULES: Final = frozenset(
    {
        "__pycache__", "curses", "dbm", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "msilib",
        "pydoc_data", "site-packages", "sqlite3", "test", "tests", "tkinter", "turtle.py", "turtledemo", "unittest", "venv",
        "xmlrpc",
    }
)  # fmt: skip
_UNUSED_EXTENSION: Final = re.compile(
    r"_?(test|xx|ctypes_test|curses|tkinter|dbm|gdbm|sqlite3|crypt|readline|nis|spwd|audioop|ossaudiodev|elementtree)"
)
_SOURCES: Final = (".pyx", ".pxd", ".pxi", ".pyi", ".c", ".cc", ".cpp", ".h", ".proto", ".a", ".pth")
_LOADED_LATER: Final = ("libgcc_s.so.1", "libnss_dns.so.2", "libnss_files.so.2", "libresolv.so.2")
"""Libraries that the C library opens itself: when a thread is cancelled, and in old versions to look names up."""

_NEEDED = re.compile(r"^\s*(?P<name>\S+) => (?P<path>/\S+)", re.MULTILINE)
_LOADER = re.compile(r"^\s*(?P<path>/\S+) \(0x", re.MULTILINE)
_MISSING = re.compile(r"^\s*(\S+) => not found", re.MULTILINE)

_START: Final = """\
import os.path
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.dirname(__file__)), "packages"))

try:
    from rexec.cli import main

    main(prog_name="rexec")
except ModuleNotFoundError as missing:
    sys.exit(f"rexec: the worker agent comes without {missing.name}: use an rexec that was installed for this command")
"""
_TRIAL: Final = """\
import importlib, pkgutil, sys
sys.path.append(sys.argv[1])
import rexec.worker, rexec.worker_process, rexec.agent_copy
for module in pkgutil.iter_modules(rexec.worker.__path__):
    importlib.import_module("rexec.worker." + module.name)
outside = [name for name, module in sys.modules.items()
           if not (getattr(module, "__file__", None) or sys.argv[2]).startswith(sys.argv[2])]
sys.exit("imported from elsewhere: " + ", ".join(outside) if outside else 0)
"""


class CannotBundle(Exception):
    """The bundle cannot be made here; the text says what is missing."""


def make_bundle(directory: Path) -> str:
    """Make the bundle, replacing an earlier one there, and return its digest. Raises CannotBundle, OSError."""
    if directory.exists() and any(directory.iterdir()) and not (directory / "lib" / "start.py").exists():
        raise CannotBundle(f"{directory} holds something else, expected an empty directory or an earlier bundle")
    shutil.rmtree(directory, ignore_errors=True)
    library = directory / "lib"
    standard = library / f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / "packages"
    for folder in (directory, directory / "bin", library, standard, packages):
        folder.mkdir(parents=True)
    interpreter = directory / "bin" / "python3"
    shutil.copyfile(_interpreter(), interpreter)
    interpreter.chmod(0o755)
    copied = [(_interpreter(), interpreter), *_copy_standard_library(standard), *_copy_packages(packages)]
    programs = [(origin, copy) for origin, copy in copied if _is_elf(copy)]
    _copy_libraries([origin for origin, _ in programs], library)
    (library / "start.py").write_text(_START)
    (library / "openssl.cnf").touch()
    _compile_launcher(directory / "run")
    _strip([*(copy for _, copy in programs), *(path for path in library.iterdir() if _is_elf(path))])
    for source in sorted([*standard.rglob("*.py"), *packages.rglob("*.py")]):
        # Unchecked: what is compiled has no source beside it. That would be as large again, and only tracebacks show it.
        py_compile.compile(
            str(source), cfile=str(source.with_suffix(".pyc")), dfile=str(source.relative_to(directory)), doraise=True,
            quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip
        source.unlink()
    _try(directory)
    digest = digest_of(directory)
    (directory / "complete").write_text(f"{digest}\n")
    for path in [*_all_below(directory), directory]:
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
        os.utime(path, (0, 0))
    return digest


def digest_of(directory: Path) -> str:
    """SHA-256, in hexadecimal digits, over paths, contents and what may be executed."""
    sha256 = hashlib.sha256()
    for path in _all_below(directory):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            sha256.update(f"{path.relative_to(directory)}\0{content}\0{os.access(path, os.X_OK):d}\n".encode())
    return sha256.hexdigest()


def _all_below(directory: Path) -> list[Path]:
    return sorted(directory.rglob("*"))


def _interpreter() -> Path:
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _copy_standard_library(target: Path) -> Iterator[tuple[Path, Path]]:
    origin = Path(sysconfig.get_path("stdlib"))
    for path in _files(origin):
        relative = path.relative_to(origin)
        if _UNUSED_MODULES.intersection(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        if relative.parts[0] == "lib-dynload" and _UNUSED_EXTENSION.match(path.name):
            continue
        if path.suffix in (".py", ".so"):
            yield _copied(path, target / relative)


def _copy_packages(target: Path) -> Iterator[tuple[Path, Path]]:
    for name in DISTRIBUTIONS:
        files = metadata.files(name)
        if files is None:
            raise CannotBundle(f"{name} does not say which files it consists of; install it with pip")
        for file in files:
            path = Path(str(file.locate()))
            is_wanted = path.suffix not in _SOURCES and path.name not in ("RECORD", "REQUESTED", "INSTALLER")
            if is_wanted and not {"..", "__pycache__", "tests"}.intersection(file.parts):
                yield _copied(path, target / file)
    for package in OWN_PACKAGES:
        origin = Path(__file__).parent.parent / package
        for path in _files(origin):
            if path.suffix == ".py":
                yield _copied(path, target / package / path.relative_to(origin))
    own = metadata.distribution("rexec")
    described = target / f"rexec-{own.version}.dist-info" / "METADATA"
    described.parent.mkdir()
    described.write_text(own.read_text("METADATA") or "")


def _files(origin: Path) -> list[Path]:
    return sorted(path for path in origin.rglob("*") if path.is_file() and not path.is_symlink())


def _copied(origin: Path, target: Path) -> tuple[Path, Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(origin, target)
    return origin, target


def _is_elf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _copy_libraries(programs: Sequence[Path], target: Path) -> None:
    """Copy all shared libraries that these load, and the loader."""
    libraries: dict[str, Path] = {}
    loaders: set[Path] = set()
    own = Path(sysconfig.get_path("platlib"))
    for program in programs:
        said = _output(["ldd", str(program)])
        if missing := _MISSING.search(said):
            raise CannotBundle(f"{program} needs {missing[1]}, which is not found here")
        for found in _NEEDED.finditer(said):
            # Packages bring some of theirs, and find them by their place beside them.
            if own not in Path(found["path"]).resolve().parents:
                libraries[found["name"]] = Path(found["path"])
        loaders.update(Path(found["path"]).resolve() for found in _LOADER.finditer(said))
    if len(loaders) != 1 or "libc.so.6" not in libraries:
        raise CannotBundle(
            f"{programs[0]} is not linked with one GNU C library, but loaded by {sorted(loaders) or 'none'}"
        )
    beside = libraries["libc.so.6"].parent
    for name in _LOADED_LATER:
        if (beside / name).exists():
            libraries.setdefault(name, beside / name)
    for name, path in sorted(libraries.items()):
        _copied(path.resolve(), target / name)
    _, loader = _copied(loaders.pop(), target / "rexec-agent")
    loader.chmod(0o755)


def _compile_launcher(target: Path) -> None:
    source = Path(__file__).with_name("agent_run.c")
    _output([os.environ.get("CC", "cc"), "-std=c11", "-Os", "-Wall", "-Werror", "-D_GNU_SOURCE", "-static", "-s",
             "-Wl,--build-id=none", "-o", str(target), str(source)])  # fmt: skip


def _strip(paths: Iterable[Path]) -> None:
    # What only debuggers read is two thirds of some.
    _output(["strip", "--strip-unneeded", *(str(path) for path in paths)])


def _try(directory: Path) -> None:
    trial = [str(directory / "lib" / "rexec-agent"), "--inhibit-cache", "--library-path", str(directory / "lib"),
             str(directory / "bin" / "python3"), "-I", "-S", "-B", "-c", _TRIAL,
             str(directory / "packages"), str(directory)]  # fmt: skip
    _output(trial, environment={})
    _output([str(directory / "run"), "worker", "--help"], environment={})


def _output(command: Sequence[str], environment: dict[str, str] | None = None) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except FileNotFoundError as error:
        raise CannotBundle(
            f"{command[0]} is not installed (Debian: apt-get install gcc libc6-dev binutils libc-bin)"
        ) from error
    if ended.returncode != 0:
        raise CannotBundle(f"{' '.join(command[:4])} ... ended with {ended.returncode}: {ended.stderr.strip()[-2000:]}")
    return ended.stdout


def main() -> None:
    """The command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m rexec.agent_bundle DIR")
    directory = Path(sys.argv[1]).resolve()  # its parts say where they lie, without ".." and links
    try:
        digest = make_bundle(directory)
    except (CannotBundle, OSError) as error:
        sys.exit(f"agent bundle: {error}")
    size_bytes = sum(path.stat().st_size for path in _all_below(directory) if path.is_file())
    sys.stdout.write(f"{directory}: {size_bytes / 1e6:.1f} MB, {digest}\n")


if __name__ == "__main__":
    main()
