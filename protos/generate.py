"""Generate the Python modules (`*_pb2.py`, `*_pb2.pyi`) beside each .proto file of this package.

Run it as ``python -m protos.generate`` after a change to a .proto file. It decides one thing of its own: where
generated code is imported from. The compiler derives a module's name from its .proto path, so it would
import `build.bazel...`; but the distribution `build` owns the name `build`, and `google` belongs to protobuf. Our
modules are therefore re-rooted below `protos`.

No gRPC stubs are generated: servers and channels bind methods by service descriptor (see `protos.methods`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from google.rpc import status_pb2

SOURCE_ROOT = Path(__file__).resolve().parent
GOOGLEAPIS_ROOT = Path(status_pb2.__file__).resolve().parents[2]

# googleapis-common-protos ships this file under another name than the one it registers in the descriptor
# pool. The name that matches, operations_pb2, is a wrapper that imports grpc, which no message needs.
OPERATIONS_PROTO = "google/longrunning/operations.proto"
OPERATIONS_SHIPPED_AS = "google/longrunning/operations_proto.proto"

IMPORT = re.compile(r"^from (?P<package>[\w.]+) import (?P<module>\w+_pb2)\b", re.MULTILINE)
BARE_MAPPING = re.compile(r"_Mapping(?=\])")
REGISTERED_NAME = re.compile(r"(?<=BuildTopDescriptorsAndMessages\(DESCRIPTOR, ')(?P<name>[\w.]+)(?=')")


class GenerationFailed(Exception):
    """The compiler refused a .proto file; the text is what it printed."""


def proto_files() -> list[str]:
    """Paths of our .proto files, relative to this package, sorted."""
    return sorted(path.relative_to(SOURCE_ROOT).as_posix() for path in SOURCE_ROOT.rglob("*.proto"))


def module_name(proto_file: str) -> str:
    """The module that the compiler makes of a .proto file, before it is re-rooted."""
    return proto_file.removesuffix(".proto").replace("/", ".") + "_pb2"


def rerooted(code: str, own_modules: frozenset[str]) -> str:
    """`code` with `own_modules` imported from, and registered, below `protos`; other imports stay."""

    def move_import(match: re.Match[str]) -> str:
        name = f"{match['package']}.{match['module']}"
        if name in own_modules:
            return f"from protos.{match['package']} import {match['module']}"
        if name == module_name(OPERATIONS_PROTO):
            shipped = module_name(OPERATIONS_SHIPPED_AS).rpartition(".")[2]
            return f"from {match['package']} import {shipped}"
        return match[0]

    # The registered name becomes __module__ of the message classes, which pickle and repr use.
    return REGISTERED_NAME.sub(r"protos.\g<name>", IMPORT.sub(move_import, code))


def typed(stub: str) -> str:
    """A stub whose message arguments, given as mappings of field names, pass a strict type checker."""
    return BARE_MAPPING.sub("_Mapping[str, object]", stub)


def generate(output_root: Path) -> list[Path]:
    """Write all generated modules below `output_root` and return their paths, sorted.

    Raises:
        GenerationFailed: a .proto file does not compile.
    """
    files = proto_files()
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={SOURCE_ROOT}",
        f"--proto_path={OPERATIONS_PROTO}={GOOGLEAPIS_ROOT / OPERATIONS_SHIPPED_AS}",
        f"--proto_path={GOOGLEAPIS_ROOT}",
        f"--python_out={output_root}",
        f"--pyi_out={output_root}",
        *files,
    ]
    # Not from within this package: there, `google` would be ours.
    done = subprocess.run(command, cwd=SOURCE_ROOT.parent, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise GenerationFailed(done.stderr.strip())

    own_modules = frozenset(module_name(file) for file in files)
    generated = []
    for file in files:
        for suffix in ("_pb2.py", "_pb2.pyi"):
            path = output_root / (file.removesuffix(".proto") + suffix)
            code = rerooted(path.read_text(), own_modules)
            path.write_text(typed(code) if suffix.endswith(".pyi") else code)
            generated.append(path)
    return sorted(generated)


def remove_orphans(kept: list[Path]) -> list[Path]:
    """Delete generated modules whose .proto file is gone and return them."""
    orphans = sorted(set(SOURCE_ROOT.rglob("*_pb2.py*")) - set(kept))
    orphans = [path for path in orphans if "__pycache__" not in path.parts]
    for path in orphans:
        path.unlink()
    return orphans


def main() -> int:
    """Regenerate in place; the exit status says whether every file compiled."""
    try:
        generated = generate(SOURCE_ROOT)
    except GenerationFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    orphans = remove_orphans(generated)
    print(f"wrote {len(generated)} files, removed {len(orphans)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
