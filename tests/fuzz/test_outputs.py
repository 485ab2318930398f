"""What an action may leave behind for the worker to collect, and what an input root may make it lay out."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cas.digest import Digest, DigestFunction
from cas.errors import FailedPrecondition, MalformedRequest
from cas.tree import check_names
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.command import invocation
from rexec.worker.inputs import make_output_parents, working_directory
from rexec.worker.outputs import Outputs, collect
from tests.fuzz.hostile import TEXTS, examples, guarded, messages

MAX_BYTES, MAX_FILES = 64 << 20, 5_000
CHECKOUT = Path(__file__).parents[2]


def collected(root: Path, *paths: str, **fields: object) -> Outputs:
    command = re_pb2.Command(output_paths=paths, **fields)  # type: ignore[arg-type]
    with guarded():
        return collect(command, str(root), DigestFunction.SHA256, MAX_BYTES, MAX_FILES)


NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"a\nb", b"\xff\xfe", b"n" * 255, " ä".encode(), b"-rf", b"...", b"\\", b"%s"]),
    st.binary(min_size=1, max_size=12).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")),
)
KINDS = st.sampled_from(
    ["file", "file", "directory", "loop", "dangling", "outside", "up", "pipe", "socket", "hard link", "sparse"]
)


def make(place: bytes, kind: str) -> None:
    """One entry of an output directory."""
    match kind:
        case "file":
            Path(os.fsdecode(place)).write_bytes(place[-20:])
        case "directory":
            os.mkdir(place)
        case "loop":
            os.symlink(os.path.basename(place), place)
        case "dangling":
            os.symlink(b"\xff/nowhere" if len(place) % 2 else b"nowhere", place)
        case "outside":
            os.symlink(b"/etc", place)
        case "up":
            os.symlink(b"../" * 30, place)
        case "pipe":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as unix:
                unix.bind(b"s")  # in the working directory: the name of a socket may have 107 bytes only
            os.rename(b"s", place)
        case "hard link":
            Path("original").touch()
            os.link("original", place)
        case _:
            with Path(os.fsdecode(place)).open("wb") as file:
                file.truncate(1 << 40)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@given(
    entries=st.lists(st.tuples(st.integers(0, 3), NAMES, KINDS), max_size=8),
    asked=st.sampled_from(["", ".", "out", "out/../out", "out/a"]),
)
@examples(80)
def test_whatever_an_action_leaves_is_collected_or_refused(entries: list[tuple[int, bytes, str]], asked: str) -> None:
    with TemporaryDirectory(dir=".") as folder:
        root = Path(folder).absolute()
        directories = [os.fsencode(root / "out")]
        os.mkdir(directories[0])
        for place, name, kind in entries:
            path = directories[place % len(directories)] + b"/" + name
            if os.path.lexists(path):
                continue
            make(path, kind)
            if kind == "directory":
                directories.append(path)
        try:
            outputs = collected(root, asked)
        except FailedPrecondition as failure:
            outputs = Outputs()
            str(failure).encode()  # a status with half a character cannot be sent
        outputs.result.SerializeToString()
        for digest, data in outputs.messages.items():
            assert Digest.of(data) == digest
        for output in outputs.result.output_directories:
            data = outputs.messages[Digest.from_proto(output.tree_digest)]
            tree = re_pb2.Tree.FromString(data)
            for directory in (tree.root, *tree.children):
                check_names(directory, Digest.of(data))
        assert all(os.path.realpath(path).startswith(f"{root}/") for path in outputs.files)


@given(command=messages(re_pb2.Command))
@examples(60)
def test_any_command_is_laid_out_inside_of_its_root_or_refused(command: re_pb2.Command) -> None:
    with TemporaryDirectory(dir=".") as folder:
        root = Path(folder).absolute() / "root"
        root.mkdir()
        (root / "a").mkdir()
        (root / "main").symlink_to("/")
        with guarded():
            try:
                directory = working_directory(command, str(root))
                invocation(command, directory, {}, str(root))
                make_output_parents(command, str(root))
                collect(command, str(root), DigestFunction.SHA256, MAX_BYTES, MAX_FILES)
            except (FailedPrecondition, MalformedRequest):
                pass
        assert sorted(os.listdir(folder)) == ["root"]


@given(path=TEXTS, target=TEXTS.filter(lambda text: text and "\0" not in text and len(text.encode()) < 4_000))
@examples(60)
def test_no_symlink_takes_an_output_from_elsewhere(path: str, target: str) -> None:
    with TemporaryDirectory(dir=".") as folder:
        root = Path(folder).absolute() / "root"
        root.mkdir()
        (Path(folder) / "secret").write_bytes(b"secret")
        (root / "link").symlink_to(target)
        (root / "up").symlink_to("..")
        for asked in (f"link/{path}", "up/secret", "link", f"up/{path}"):
            try:
                outputs = collected(root, asked)
            except (FailedPrecondition, MalformedRequest):
                continue
            assert not outputs.files


@pytest.mark.parametrize("kind", ["files", "directories"])
def test_more_outputs_than_allowed_are_refused(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for place in range(101):
        if kind == "files":
            (out / str(place)).touch()
        else:
            (out / str(place)).mkdir()
    with pytest.raises(FailedPrecondition, match="more than 100 files"):
        collect(re_pb2.Command(output_paths=["out"]), str(tmp_path), DigestFunction.SHA256, MAX_BYTES, 100)


def test_a_sparse_file_of_a_tebibyte_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FailedPrecondition, match="take 1099511627776 bytes"):
        collected(tmp_path, "out")


def test_directories_deeper_than_a_path_may_be_are_collected_or_refused(tmp_path: Path) -> None:
    before = os.open(".", os.O_RDONLY)
    try:
        os.chdir(tmp_path)
        os.mkdir("out")
        os.chdir("out")
        for _ in range(20):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    finally:
        os.fchdir(before)
        os.close(before)
    with pytest.raises(FailedPrecondition, match="longer than the system allows"):
        collected(tmp_path, "out")


_AS_NOBODY = """
import os, sys
from pathlib import Path
from cas.digest import DigestFunction
from cas.errors import FailedPrecondition
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.worker.outputs import collect

root, asked, closed, mode = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4], 8)
if os.geteuid() == 0:  # root may read everything
    os.chown(root, 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
(root / "out/sub").mkdir(parents=True)
(root / "out/sub/file").write_text("x")
(root / "out/sub/file").chmod(0)
(root / closed).chmod(mode)
try:
    outputs = collect(re_pb2.Command(output_paths=[asked]), str(root), DigestFunction.SHA256, 1000, 1000)
except FailedPrecondition:
    print("refused")
else:
    print(len(outputs.files))
"""


@pytest.mark.parametrize("mode", ["000", "444", "666"])
@pytest.mark.parametrize(
    ("asked", "closed", "said"),
    [
        ("out", "out", "1"),
        ("out", "out/sub", "1"),
        ("out/sub", "out", "refused"),
        ("out/sub/file", "out/sub", "refused"),
    ],
)
def test_directories_without_permissions_are_read_all_the_same_or_refused(
    asked: str, closed: str, said: str, mode: str
) -> None:
    with TemporaryDirectory(prefix="rexec-fuzz-") as folder:  # not below a directory that others may not enter
        ran = subprocess.run(
            [sys.executable, "-c", _AS_NOBODY, folder, asked, closed, mode],
            capture_output=True, text=True, check=False, timeout=60, cwd=CHECKOUT,
        )  # fmt: skip
        subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    assert (ran.stdout.strip(), ran.stderr) == (said, "")
