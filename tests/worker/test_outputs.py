"""How outputs become an ActionResult (behaviours 30 to 34), and what hostile ones come to."""

from __future__ import annotations

import os

import msgspec
import pytest

from cas.digest import Digest
from cas.errors import Code
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from tests.worker.actions import File, Link, Worker

FORMAT = re_pb2.Command


async def tree_of(worker: Worker, finished: worker_pb2.Finished, path: str) -> re_pb2.Tree:
    directories = {output.path: output for output in finished.action_result.output_directories}
    assert directories[path].is_topologically_sorted
    return re_pb2.Tree.FromString(await worker.read(directories[path].tree_digest))


async def test_30_output_paths_take_the_place_of_both_other_lists(worker: Worker) -> None:
    finished = await worker.sh(
        "echo 1 > a; echo 2 > b; mkdir d",
        output_paths=["a", "missing"],
        output_files=["b"],
        output_directories=["d"],
    )
    assert await worker.outputs(finished) == {"a": b"1\n"}
    assert not finished.action_result.output_directories


async def test_30_the_older_lists_work_and_missing_outputs_are_left_out(worker: Worker) -> None:
    finished = await worker.sh("echo 1 > a; mkdir d", output_files=["a", "no"], output_directories=["d", "nodir"])
    assert finished.status.code == 0
    assert await worker.outputs(finished) == {"a": b"1\n"}
    assert [output.path for output in finished.action_result.output_directories] == ["d"]


@pytest.mark.parametrize(
    ("script", "lists"),
    [("mkdir x", {"output_files": ["x"]}), ("echo > x", {"output_directories": ["x"]})],
)
async def test_31_an_output_of_the_other_kind_is_a_failed_precondition(
    worker: Worker, script: str, lists: dict[str, list[str]]
) -> None:
    finished = await worker.sh(f"echo seen; {script}", **lists)
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, worker_pb2.Finished.NONE)
    assert not finished.status.details
    assert await worker.read(finished.action_result.stdout_digest) == b"seen\n"


async def test_31_a_path_in_both_lists_may_be_either(worker: Worker) -> None:
    finished = await worker.sh("mkdir x; echo > y", output_files=["x", "y"], output_directories=["x", "y"])
    assert [output.path for output in finished.action_result.output_files] == ["y"]
    assert [output.path for output in finished.action_result.output_directories] == ["x"]


async def test_32_symlinks_stay_symlinks_in_the_new_list_and_the_old_ones(worker: Worker) -> None:
    finished = await worker.sh(
        "mkdir d; ln -s nowhere dangling; ln -s d todir; ln -s /etc/passwd absolute",
        output_paths=["dangling", "todir", "absolute"],
    )
    result = finished.action_result
    assert {s.path: s.target for s in result.output_symlinks} == {
        "dangling": "nowhere",
        "todir": "d",
        "absolute": "/etc/passwd",
    }
    assert {s.path for s in result.output_file_symlinks} == {"dangling", "absolute"}
    assert {s.path for s in result.output_directory_symlinks} == {"todir"}
    assert not result.output_files


async def test_32_symlinks_of_older_clients_are_of_the_kind_asked_for(worker: Worker) -> None:
    finished = await worker.sh("ln -s x f; ln -s y d", output_files=["f"], output_directories=["d"])
    result = finished.action_result
    assert [s.path for s in result.output_file_symlinks] == ["f"]
    assert [s.path for s in result.output_directory_symlinks] == ["d"]
    assert len(result.output_symlinks) == 2


async def test_33_a_directory_becomes_a_tree_without_repetition_and_with_parents_first(worker: Worker) -> None:
    finished = await worker.sh(
        "mkdir -p d/a/same/deep d/b/same/deep d/c d/empty; echo x > d/a/same/deep/f; echo x > d/b/same/deep/f; "
        "chmod +x d/a/same/deep/f d/b/same/deep/f; echo y > d/y; ln -s y d/l; mkdir -p d/c/deep; "
        "cp -p d/a/same/deep/f d/c/deep; echo c > d/c/c",
        output_paths=["d"],
    )
    tree = await tree_of(worker, finished, "d")
    digests = [Digest.of(child.SerializeToString(deterministic=True)) for child in tree.children]
    # a and b are equal; same, deep, c and empty
    assert len(digests) == len(set(digests)) == 5
    assert [node.name for node in tree.root.directories] == ["a", "b", "c", "empty"]
    assert [(node.name, node.is_executable) for node in tree.root.files] == [("y", False)]
    assert [(node.name, node.target) for node in tree.root.symlinks] == [("l", "y")]
    seen = {Digest.from_proto(node.digest) for node in tree.root.directories}
    for child, digest in zip(tree.children, digests, strict=True):
        assert digest in seen, "a child comes before all of its parents"
        seen |= {Digest.from_proto(node.digest) for node in child.directories}
    position = {digest: index for index, digest in enumerate(digests)}
    for index, child in enumerate(tree.children):
        assert all(position[Digest.from_proto(node.digest)] > index for node in child.directories)


@pytest.mark.parametrize(
    ("wanted", "has_tree", "has_root"),
    [(FORMAT.TREE_ONLY, True, False), (FORMAT.DIRECTORY_ONLY, False, True), (FORMAT.TREE_AND_DIRECTORY, True, True)],
)
async def test_33_the_format_asked_for(worker: Worker, wanted: int, has_tree: bool, has_root: bool) -> None:
    finished = await worker.sh("mkdir -p d/sub; echo x > d/sub/f", output_paths=["d"], output_directory_format=wanted)
    (output,) = finished.action_result.output_directories
    assert output.HasField("tree_digest") is has_tree
    assert output.HasField("root_directory_digest") is has_root
    if has_root:
        root = re_pb2.Directory.FromString(await worker.read(output.root_directory_digest))
        sub = re_pb2.Directory.FromString(await worker.read(root.directories[0].digest))
        assert await worker.read(sub.files[0].digest) == b"x\n"


async def test_33_an_empty_directory_works(worker: Worker) -> None:
    finished = await worker.sh("mkdir d", output_paths=["d"])
    tree = await tree_of(worker, finished, "d")
    assert tree == re_pb2.Tree(root=re_pb2.Directory())


@pytest.mark.parametrize("path", ["", "."])
async def test_33_the_whole_working_directory_can_be_an_output(worker: Worker, path: str) -> None:
    finished = await worker.sh(
        "echo x > f", inputs={"w": {"in": b"i"}, "other": b""}, working_directory="w", output_paths=[path]
    )
    tree = await tree_of(worker, finished, path)
    assert [node.name for node in tree.root.files] == ["f", "in"]


async def test_34_the_executable_bit_is_any_of_three(worker: Worker) -> None:
    finished = await worker.sh(
        "for m in 600 644 700 610 601; do echo $m > $m; chmod $m $m; done",
        output_paths=["600", "644", "700", "610", "601"],
    )
    executable = {output.path for output in finished.action_result.output_files if output.is_executable}
    assert executable == {"700", "610", "601"}


async def test_34_node_properties_only_when_asked_for(worker: Worker) -> None:
    script = "mkdir d; echo > f; echo > d/g; chmod 640 f; touch -d @1000000000.5 f; ln -s f l"
    plain = await worker.sh(script, output_paths=["d", "f", "l"])
    assert not plain.action_result.output_files[0].HasField("node_properties")
    asked = await worker.sh(script, output_paths=["d", "f", "l"], output_node_properties=["mtime", "unix_mode"])
    properties = asked.action_result.output_files[0].node_properties
    assert properties.unix_mode.value == 0o640
    assert (properties.mtime.seconds, properties.mtime.nanos) == (1_000_000_000, 500_000_000)
    assert asked.action_result.output_symlinks[0].node_properties.HasField("mtime")
    tree = await tree_of(worker, asked, "d")
    assert tree.root.files[0].node_properties.unix_mode.value == 0o644


async def test_34_an_unknown_property_of_outputs_is_refused(worker: Worker) -> None:
    finished = await worker.run("/bin/true", output_node_properties=["colour"])
    assert finished.status.code == Code.INVALID_ARGUMENT
    assert "colour" in finished.status.message


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("mkfifo d/x", "a named pipe"),
        ("python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"d/x\")'", "a socket"),
        ("touch \"$(printf 'd/\\377')\"", "not UTF-8"),
        ("ln -s \"$(printf '\\377')\" d/x", "not UTF-8"),
        ("mkdir \"$(printf 'd/\\377')\"", "not UTF-8"),
    ],
)
async def test_what_no_blob_can_hold_is_a_clear_failure(worker: Worker, script: str, text: str) -> None:
    finished = await worker.sh(f"mkdir d; {script}", output_paths=["d"], env={"LC_ALL": "C"})
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, worker_pb2.Finished.NONE)
    assert text in finished.status.message
    assert str(worker.work_dir) not in finished.status.message  # which means nothing to a client
    assert "'d/" in finished.status.message
    direct = await worker.sh("mkfifo x", output_paths=["x"])
    assert direct.status.code == Code.FAILED_PRECONDITION


async def test_outputs_that_are_large_without_taking_room_are_not_hashed_for_years(worker: Worker) -> None:
    worker.context.settings = msgspec.structs.replace(worker.context.settings, output_max_bytes=3 << 20)
    finished = await worker.sh("truncate -s 2M x y", output_paths=["x", "y"])
    assert (finished.status.code, finished.failure) == (Code.FAILED_PRECONDITION, worker_pb2.Finished.NONE)
    assert "[worker] output_max_bytes" in finished.status.message
    finished = await worker.sh("truncate -s 2M x", output_paths=["x", "y"])
    assert await worker.outputs(finished) == {"x": bytes(2 << 20)}


async def test_special_files_that_are_no_outputs_do_not_matter(worker: Worker) -> None:
    finished = await worker.sh("mkfifo p; echo x > out", output_paths=["out"])
    assert await worker.outputs(finished) == {"out": b"x\n"}


async def test_symlink_loops_and_long_names_are_kept(worker: Worker) -> None:
    name = "n" * 255
    finished = await worker.sh(f"mkdir d; ln -s loop d/loop; ln -s . d/self; echo > d/{name}", output_paths=["d"])
    tree = await tree_of(worker, finished, "d")
    assert {node.name: node.target for node in tree.root.symlinks} == {"loop": "loop", "self": "."}
    assert [node.name for node in tree.root.files] == [name]


async def test_outputs_without_permissions_are_read(worker: Worker) -> None:
    finished = await worker.sh("mkdir -p d/sub; echo x > d/sub/f; chmod 0 d/sub/f d/sub", output_paths=["d"])
    tree = await tree_of(worker, finished, "d")
    assert await worker.read(tree.children[0].files[0].digest) == b"x\n"


async def test_an_output_reached_through_a_symlink_out_of_the_root_is_refused(worker: Worker) -> None:
    finished = await worker.sh("rmdir out; ln -s /etc out", output_paths=["out/passwd"])
    assert finished.status.code == Code.FAILED_PRECONDITION


async def test_an_output_reached_through_a_symlink_inside_the_root_is_found(worker: Worker) -> None:
    finished = await worker.sh("echo x > out/f", inputs={"real": {}, "out": Link("real")}, output_paths=["out/f"])
    assert await worker.outputs(finished) == {"out/f": b"x\n"}


async def test_a_deep_output_tree_is_read_or_refused_but_never_a_crash(worker: Worker) -> None:
    script = "import os\nos.mkdir('d'); os.chdir('d')\nfor _ in range({}): os.mkdir('x'); os.chdir('x')"
    fine = await worker.run("python3", "-c", script.format(600), output_paths=["d"])
    assert len((await tree_of(worker, fine, "d")).children) == 600
    deep = await worker.run("python3", "-c", script.format(5000), output_paths=["d"])
    assert deep.status.code == Code.FAILED_PRECONDITION


async def test_large_outputs_travel_in_pieces(worker: Worker) -> None:
    finished = await worker.sh("head -c 5000000 /dev/zero > big; echo x > small", output_paths=["big", "small"])
    assert await worker.outputs(finished) == {"big": bytes(5_000_000), "small": b"x\n"}


async def test_an_output_becomes_the_next_actions_input_without_a_fetch(worker: Worker) -> None:
    finished = await worker.sh("printf '#!/bin/sh\\necho ran' > tool; chmod +x tool", output_paths=["tool"])
    digest = Digest.from_proto(finished.action_result.output_files[0].digest)
    data = worker.store.blobs[digest]
    lease = await worker.lease("./tool", inputs={"tool": File(data, True, in_store=False)})
    root = Digest.from_proto(lease.action.input_root_digest)
    del worker.store.blobs[digest]  # would be missed if it were fetched
    again = await worker.run("./tool", inputs=root)
    assert await worker.stdout(again) == "ran\n"


async def test_unchanged_outputs_are_not_uploaded_again(worker: Worker) -> None:
    written: list[Digest] = []
    original = worker.store.write_many

    async def counted(blobs: list[tuple[Digest, bytes]]) -> object:
        written.extend(digest for digest, _ in blobs)
        return await original(blobs)

    await worker.sh("echo x > f; echo s", output_paths=["f"])
    root = await worker.inputs.tree({})
    worker.store.write_many = counted  # type: ignore[method-assign,assignment]
    await worker.sh("echo x > f; echo s", output_paths=["f"], inputs=root)
    assert written == []


@pytest.mark.parametrize("function", ["BLAKE3", "SHA1"])
async def test_digests_are_of_the_function_of_the_action(worker: Worker, function: str) -> None:
    worker.inputs.function = type(worker.inputs.function)[function]
    finished = await worker.sh("cat in > out; echo x", inputs={"in": b"data"}, output_paths=["out"])
    assert await worker.outputs(finished) == {"out": b"data"}
    assert await worker.stdout(finished) == "x\n"


def test_the_tests_see_the_worlds_file_names() -> None:
    assert os.fsencode("\udcff") == b"\xff"
