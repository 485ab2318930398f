"""Behaviours 30 to 35: what of an action's work the result names, and how."""

from __future__ import annotations

from typing import Any

from integration.conformance.actions import (
    action,
    content_of,
    directory_of,
    execute,
    file_of,
    outputs_shown,
    run,
    status_of_execute,
    stderr_of,
    stdout_of,
    tree_of,
)
from integration.conformance.blobs import digest_of, fresh, key
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    expect,
    expect_code,
    expect_equal,
    expect_in,
    expect_offered,
)  # fmt: skip
from integration.conformance.inputs import Inputs  # fmt: skip
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

EMPTY = digest_of(b"")


@behaviour(30, "with output_paths, output_files and output_directories are ignored", execution=True)
async def paths_replace(client: Client) -> None:
    """New clients set all three for the sake of old servers."""
    older = {"output_files": ["old", "d"], "output_directories": ["od", "new"]}
    result = await run(
        client, "echo 1 > new; echo 2 > old; mkdir -p d od; echo 3 > d/f", outputs=["d", "new"], command=older
    )
    expect_equal({file.path for file in result.output_files}, {"new"}, "output files")
    expect_equal({directory.path for directory in result.output_directories}, {"d"}, "output directories")


@behaviour(30, "output_files and output_directories work where output_paths is empty", execution=True)
async def older_fields(client: Client) -> None:
    """Clients of API 2.0 know nothing else."""
    if not client.serves_2_0:
        raise NotSupported("clients of 2.0, which know no output_paths, are not served")
    older = {"output_files": ["a/file", "missing"], "output_directories": ["dir", "none"]}
    result = await run(client, "echo 1 > a/file; mkdir -p dir; echo 2 > dir/inner", command=older)
    expect_equal({file.path for file in result.output_files}, {"a/file"}, "output files")
    expect_equal({directory.path for directory in result.output_directories}, {"dir"}, "output directories")


@behaviour(30, "missing outputs are left out of the result, not errors", execution=True)
async def missing_outputs(client: Client) -> None:
    """Bazel's test runner names ten files of which most are never made."""
    result = await run(client, "echo 1 > made", outputs=["made", "missing", "no/where/at/all"])
    expect_equal([file.path for file in result.output_files], ["made"], "output files")
    expect(
        not result.output_directories and not result.output_symlinks,
        f"expected nothing else, got {outputs_shown(result)}",
    )


@behaviour(31, "a declared output file that is a directory is FAILED_PRECONDITION, and the reverse", execution=True)
async def wrong_kind(client: Client) -> None:
    """The client asked for what cannot be had; it would misread what it got."""
    digest = await action(client, "mkdir out", command={"output_files": ["out"]})
    expect_code((await execute(client, digest)).status, "an output file that is a directory", FAILED_PRECONDITION)
    digest = await action(client, "echo > out", command={"output_directories": ["out"]})
    expect_code((await execute(client, digest)).status, "an output directory that is a file", FAILED_PRECONDITION)


@behaviour(32, "symlink outputs are kept as symlinks, dangling ones too", execution=True)
async def symlinks(client: Client) -> None:
    """With the target as it was written, and for older clients once more in the two deprecated fields."""
    script = "mkdir d; echo 1 > f; ln -s f to-file; ln -s d to-dir; ln -s no/where dangling"
    outputs = ["dangling", "to-dir", "to-file"]
    targets = {"dangling": "no/where", "to-dir": "d", "to-file": "f"}
    result = await run(client, script, outputs=outputs)
    expect_equal({link.path: link.target for link in result.output_symlinks}, targets, "output_symlinks")
    expect(
        not result.output_files and not result.output_directories, f"expected links only, got {outputs_shown(result)}"
    )
    older = {
        **{link.path: link.target for link in result.output_file_symlinks},
        **{link.path: link.target for link in result.output_directory_symlinks},
    }
    expect_equal(older, targets, "output_file_symlinks and output_directory_symlinks together")
    expect_in("to-dir", [link.path for link in result.output_directory_symlinks], "output_directory_symlinks")
    expect_in("to-file", [link.path for link in result.output_file_symlinks], "output_file_symlinks")


@behaviour(32, "symlinks inside an output directory are kept", execution=True)
async def symlinks_inside(client: Client) -> None:
    """In the Directory messages of its Tree."""
    result = await run(client, "mkdir d; echo 1 > d/f; ln -s f d/a; ln -s ../x d/b", outputs=["d"])
    tree = await tree_of(client, directory_of(result, "d"))
    links = {link.name: link.target for link in tree.root.symlinks}
    expect_equal(links, {"a": "f", "b": "../x"}, "symlinks of the Tree's root")


async def _made_tree(client: Client, **command: int) -> re_pb2.OutputDirectory:
    """An output directory with equal subdirectories: t/{a,b}/same/file, t/c/file."""
    script = "for d in a/same b/same c; do mkdir -p t/$d; echo same > t/$d/file; done"
    return directory_of(await run(client, script, outputs=["t"], command=command), "t")


@behaviour(33, "a Tree holds each different directory once, parents before children", execution=True)
async def tree(client: Client) -> None:
    """And says so with is_topologically_sorted. Here a and b are equal, and so are all that hold the file."""
    output = await _made_tree(client)
    message = await tree_of(client, output)
    encoded = [child.SerializeToString(deterministic=True) for child in message.children]
    expect_equal(len(encoded), len(set(encoded)), "children of the Tree, with and without duplicates")
    expect_equal(len(encoded), 2, "different directories below the root")
    # OutputDirectory.is_topologically_sorted is a promise that a server may make.
    expect_offered(output.is_topologically_sorted, "is_topologically_sorted is not set")
    waiting = {key(node.digest) for node in message.root.directories}
    seen = set()
    for child, data in zip(message.children, encoded, strict=True):
        expect_in(key(digest_of(data)), waiting, "a child of the Tree, among those that its predecessors name")
        seen.add(key(digest_of(data)))
        held = {key(node.digest) for node in child.directories}
        # The root names c too, which equals what a and b hold: it has to come after both of its parents.
        expect(not held & seen, f"expected parents before children, got {len(held & seen)} children before a parent")
        waiting |= held
    names = [node.name for node in message.root.directories]
    expect_equal(names, ["a", "b", "c"], "directories of the root, sorted by name")


@behaviour(33, "output_directory_format asks for a Tree, Directory messages, or both", execution=True)
async def directory_format(client: Client) -> None:
    """root_directory_digest leads to Directory messages in the CAS, and GetTree can walk them."""
    kinds = re_pb2.Command
    for wanted, has_tree, has_root in (
        (kinds.TREE_ONLY, True, False),
        (kinds.DIRECTORY_ONLY, False, True),
        (kinds.TREE_AND_DIRECTORY, True, True),
    ):
        name = kinds.OutputDirectoryFormat.Name(wanted)
        output = await _made_tree(client, output_directory_format=wanted)
        expect_equal(output.HasField("tree_digest"), has_tree, f"a tree_digest with {name}")
        expect_equal(output.HasField("root_directory_digest"), has_root, f"a root_directory_digest with {name}")
        if has_root:
            request = re_pb2.GetTreeRequest(root_digest=output.root_directory_digest)
            found = [directory async for page in client.call("GetTree", request) for directory in page.directories]
            different = {directory.SerializeToString(deterministic=True) for directory in found}
            expect_equal(len(different), 3, f"different directories that GetTree finds with {name}")


@behaviour(33, "an empty output directory is an output", execution=True)
async def empty_directory(client: Client) -> None:
    """Its Tree has an empty root."""
    result = await run(client, "mkdir -p e f/g", outputs=["e", "f"])
    expect_equal(
        await tree_of(client, directory_of(result, "e")), re_pb2.Tree(root=re_pb2.Directory()), "an empty Tree"
    )
    inner = await tree_of(client, directory_of(result, "f"))
    expect_equal([node.name for node in inner.root.directories], ["g"], "a directory that holds an empty one")
    await client.missing([node.digest for node in inner.root.directories])


@behaviour(33, 'the output path "" is the whole working directory', execution=True)
async def whole_directory(client: Client) -> None:
    """Inputs and what the command made."""
    inputs = Inputs(files={"w/in": fresh(), "outside": fresh()})
    command = {"working_directory": "w"}
    digest = await action(client, "echo 1 > made", inputs=inputs, outputs=[""], command=command)
    response = await execute(client, digest)
    expect_code(response.status, "an action with the output path ''", 0)
    root = (await tree_of(client, directory_of(response.result, ""))).root
    expect_equal([node.name for node in root.files], ["in", "made"], "files of the whole working directory")


@behaviour(34, "is_executable follows the mode bits", execution=True)
async def executable(client: Client) -> None:
    """Any of the three execute bits; in Trees too."""
    modes = {"644": False, "600": False, "755": True, "700": True, "654": True, "645": True}
    script = "mkdir d; for m in " + " ".join(modes) + "; do echo $m > f$m; chmod $m f$m; cp -p f$m d/f$m; done"
    result = await run(client, script, outputs=[*(f"f{mode}" for mode in modes), "d"])
    only_owner = {mode: int(mode, 8) & 0o100 != 0 for mode in modes}
    told = {mode: file_of(result, f"f{mode}").is_executable for mode in modes}
    # FileNode.is_executable does not say for whom.
    expect_offered(told != only_owner, "only the owner's bit is looked at")
    for mode, expected in modes.items():
        expect_equal(file_of(result, f"f{mode}").is_executable, expected, f"is_executable of mode {mode}")
    inside = (await tree_of(client, directory_of(result, "d"))).root
    expect_equal({node.name[1:]: node.is_executable for node in inside.files}, modes, "is_executable in a Tree")


def _require_properties(client: Client, *names: str) -> None:
    for name in names:
        if name not in client.execution.supported_node_properties:
            raise NotSupported(f"node property {name} is not advertised")


@behaviour(34, "node properties of outputs are told only where output_node_properties asks", execution=True)
async def output_properties(client: Client) -> None:
    """mtime and unix_mode of a file."""
    _require_properties(client, "mtime", "unix_mode")
    script = "echo 1 > f; chmod 640 f; touch -d @1234567890 f"
    plain = file_of(await run(client, script, outputs=["f"]), "f")
    expect(not plain.HasField("node_properties"), f"expected no node properties unasked, got {plain.node_properties}")
    told = file_of(
        await run(client, script, outputs=["f"], command={"output_node_properties": ["mtime", "unix_mode"]}), "f"
    ).node_properties
    expect_equal(told.mtime.seconds, 1234567890, "mtime of the output")
    expect_equal(told.unix_mode.value & 0o777, 0o640, "unix_mode of the output")
    only = file_of(await run(client, script, outputs=["f"], command={"output_node_properties": ["unix_mode"]}), "f")
    expect(not only.node_properties.HasField("mtime"), "expected no mtime where only unix_mode was asked for, got one")


@behaviour(34, "node properties of inputs are applied", execution=True)
async def input_properties(client: Client) -> None:
    """A file with a mode and a time of its own, beside one of the same content without."""
    _require_properties(client, "mtime", "unix_mode")
    properties = re_pb2.NodeProperties()
    properties.mtime.seconds = 1234567890
    properties.unix_mode.value = 0o750
    data = fresh()
    inputs = Inputs(files={"f": data, "g": data}, properties={"f": properties})
    result = await run(client, "stat -c '%a %Y' f; test ! -x g", inputs=inputs)
    mode, time = (await stdout_of(client, result)).split()
    # Whether an input is writable is the worker's affair: it must not let a blob be changed through it.
    expect_equal(int(mode, 8) & 0o555, 0o550, "read and execute bits of the input's mode")
    expect_equal(int(time), 1234567890, "mtime of the input")


@behaviour(34, "an unknown node property is INVALID_ARGUMENT", execution=True)
async def unknown_property(client: Client) -> None:
    """Asked for on outputs, and given to an input: nobody must rely on what is not done."""
    digest = await action(client, "true", outputs=["f"], command={"output_node_properties": ["surely-unknown"]})
    expect_code(await status_of_execute(client, digest), "an unknown output node property", INVALID_ARGUMENT)
    properties = re_pb2.NodeProperties(properties=[re_pb2.NodeProperty(name="surely-unknown", value="1")])
    inputs = Inputs(files={"f": fresh()}, properties={"f": properties})
    digest = await action(client, "true", inputs=inputs)
    expect_code(await status_of_execute(client, digest), "an unknown input node property", INVALID_ARGUMENT)


@behaviour(35, "empty stdout and stderr have no digest or the empty one", execution=True)
async def empty_streams(client: Client) -> None:
    """And nothing inline."""
    result = await run(client, "true")
    for name in ("stdout", "stderr"):
        if result.HasField(f"{name}_digest"):
            expect_equal(key(getattr(result, f"{name}_digest")), key(EMPTY), f"the digest of an empty {name}")
        expect_equal(getattr(result, f"{name}_raw"), b"", f"{name}_raw of an empty {name}")


@behaviour(35, "stdout, stderr and files are inlined when asked, and named by digest all the same", execution=True)
async def inlined(client: Client) -> None:
    """Small ones, as a client asks for that wants to save a round trip."""
    digest = await action(client, "echo out; echo err >&2; echo file > f; echo file > g", outputs=["f", "g"])
    request: dict[str, Any] = {"inline_stdout": True, "inline_stderr": True, "inline_output_files": ["f"]}
    result = (await execute(client, digest, **request)).result
    inlined = (result.stdout_raw, result.stderr_raw)
    # ExecuteRequest.inline_stdout and the rest are hints.
    expect_offered(any(inlined) or bool(file_of(result, "f").contents), "no hint to inline is followed")
    expect_equal(inlined, (b"out\n", b"err\n"), "stdout_raw and stderr_raw")
    expect_equal(file_of(result, "f").contents, b"file\n", "contents of the file that was asked for")
    expect_equal(file_of(result, "g").contents, b"", "contents of the file that was not asked for")
    expect_equal(key(file_of(result, "f").digest), key(digest_of(b"file\n")), "the digest of the inlined file")


@behaviour(35, "output that is not asked for, or is large, is not inlined", execution=True)
async def not_inlined(client: Client) -> None:
    """8 MiB of stdout does not fit the 4 MiB of a message, whatever the client asks."""
    digest = await action(client, "echo out; echo err >&2")
    result = (await execute(client, digest)).result
    expect_equal((result.stdout_raw, result.stderr_raw), (b"", b""), "stdout_raw and stderr_raw that nobody asked for")
    expect_equal(await stdout_of(client, result), b"out\n", "stdout by its digest")
    expect_equal(await stderr_of(client, result), b"err\n", "stderr by its digest")
    digest = await action(client, "head -c 8388608 /dev/zero; head -c 8388608 /dev/zero > f", outputs=["f"])
    result = (await execute(client, digest, inline_stdout=True, inline_output_files=["f"])).result
    expect_equal(len(result.stdout_raw), 0, "bytes of stdout_raw of 8 MiB")
    expect_equal(result.stdout_digest.size_bytes, 8 << 20, "bytes of stdout by its digest")
    expect_equal(key(file_of(result, "f").digest), key(digest_of(bytes(8 << 20))), "the digest of an output of 8 MiB")


async def _flooded(client: Client, size_bytes: int) -> None:
    digest = await action(client, f"head -c {size_bytes} /dev/zero; echo end >&2; echo made > f", outputs=["f"])
    response = await execute(client, digest, timeout=240)
    if response.status.code == 0:
        got = response.result.stdout_digest.size_bytes
        expect(0 < got <= size_bytes, f"expected stdout of at most {size_bytes} bytes, got {got}")
        expect_equal(await content_of(client, response.result, "f"), b"made\n", "the output beside a flood of stdout")
        expect_equal(await stderr_of(client, response.result), b"end\n", "stderr beside a flood of stdout")
        expect(
            got == size_bytes or bool(response.message), "expected a message that says that stdout was cut, got none"
        )
    await run(client, "true")


@behaviour(35, "a flood of stdout does not break the worker", execution=True)
async def flood(client: Client) -> None:
    """96 MiB: kept, or cut with a message, and the next action runs."""
    await _flooded(client, 96 << 20)


@behaviour(35, "gigabytes of stdout are bounded", execution=True, slow=True, timeout_seconds=300)
async def great_flood(client: Client) -> None:
    """3 GiB."""
    await _flooded(client, 3 << 30)
