"""What is checked in is what the generator makes of the .proto files."""

from __future__ import annotations

import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from protos import generate
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

MODULES = [f"protos.{generate.module_name(file)}" for file in generate.proto_files()]


def contents(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): path.read_text()
        for path in sorted(root.rglob("*_pb2.py*"))
        if "__pycache__" not in path.parts
    }


def test_checked_in_modules_are_what_the_generator_writes(tmp_path: Path) -> None:
    generate.generate(tmp_path)

    fresh, checked_in = contents(tmp_path), contents(generate.SOURCE_ROOT)

    assert sorted(checked_in) == sorted(fresh), "run python -m protos.generate"
    differing = [path for path, code in fresh.items() if checked_in[path] != code]
    assert differing == [], "run python -m protos.generate (with the grpcio-tools that pyproject.toml pins)"


def test_every_interface_of_the_package_is_found() -> None:
    assert generate.proto_files() == [
        "build/bazel/remote/asset/v1/remote_asset.proto",
        "build/bazel/remote/execution/v2/remote_execution.proto",
        "build/bazel/remote/logstream/v1/remote_logstream.proto",
        "build/bazel/semver/semver.proto",
        "google/bytestream/bytestream.proto",
        "grpc/health/v1/health.proto",
        "grpc/reflection/v1/reflection.proto",
        "grpc/reflection/v1alpha/reflection.proto",
        "keda/externalscaler.proto",
        "rexec/scheduler/v1/autoscaling.proto",
        "rexec/scheduler/v1/fleet.proto",
        "rexec/scheduler/v1/frontends.proto",
        "rexec/scheduler/v1/record.proto",
        "rexec/scheduler/v1/status.proto",
        "rexec/worker/v1/worker.proto",
    ]


@pytest.mark.parametrize("name", MODULES)
def test_generated_modules_are_registered_where_they_can_be_imported(name: str) -> None:
    module = import_module(name)
    for message in module.DESCRIPTOR.message_types_by_name:
        assert getattr(module, message).__module__ == name


def test_messages_can_be_pickled() -> None:
    digest = re_pb2.Digest(hash="ab", size_bytes=3)
    assert pickle.loads(pickle.dumps(digest)) == digest


@pytest.mark.parametrize("name", MODULES)
def test_messages_need_neither_grpc_nor_a_package_of_that_name_from_elsewhere(name: str) -> None:
    """In a process of its own, because this one has imported much else."""
    code = (
        f"import sys; import {name}; "
        "print(sorted({'grpc', 'build', 'rexec', 'google.bytestream'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=generate.SOURCE_ROOT.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_only_our_own_imports_are_rerooted() -> None:
    code = "\n".join(
        [
            "from build.bazel.semver import semver_pb2 as _semver_pb2",
            "from google.rpc import status_pb2 as _status_pb2",
            "from google.protobuf import any_pb2 as _any_pb2",
            "from google.longrunning import operations_pb2 as _operations_pb2",
        ]
    )
    assert generate.rerooted(code, frozenset({"build.bazel.semver.semver_pb2"})).splitlines() == [
        "from protos.build.bazel.semver import semver_pb2 as _semver_pb2",
        "from google.rpc import status_pb2 as _status_pb2",
        "from google.protobuf import any_pb2 as _any_pb2",
        "from google.longrunning import operations_proto_pb2 as _operations_pb2",
    ]


def test_a_proto_file_that_does_not_compile_is_reported_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "protos"
    source.mkdir()
    (source / "broken.proto").write_text('syntax = "proto3"; message { }')
    monkeypatch.setattr(generate, "SOURCE_ROOT", source)
    with pytest.raises(generate.GenerationFailed, match=r"broken\.proto:1"):
        generate.generate(tmp_path)


def test_modules_whose_proto_file_is_gone_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("old_pb2.py", "old_pb2.pyi", "kept_pb2.py", "kept.proto"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(generate, "SOURCE_ROOT", tmp_path)

    generate.remove_orphans([tmp_path / "kept_pb2.py"])

    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.proto", "kept_pb2.py"]
