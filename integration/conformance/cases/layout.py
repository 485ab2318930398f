"""Behaviours 28, 29, 36 and 37: what an action finds where it runs."""

from __future__ import annotations

import asyncio
from typing import Any

from grpc import aio

from integration.conformance.actions import (
    PATH,
    action,
    content_of,
    execute,
    run,
    status_of_execute,
    stdout_of,
    succeeded,
)
from integration.conformance.blobs import digest_of, fresh
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    expect,
    expect_code,
    expect_equal,
    status_of,
)  # fmt: skip
from integration.conformance.inputs import Inputs  # fmt: skip


@behaviour(28, "a working directory that is not in the input root is INVALID_ARGUMENT", execution=True)
async def working_directory_missing(client: Client) -> None:
    """One that is not there, one that is a file, and one outside."""
    inputs = Inputs(files={"d/file": fresh()})
    for place in ("nowhere", "d/nowhere", "d/file", "../d", "/tmp"):
        digest = await action(client, "true", inputs=inputs, command={"working_directory": place})
        expect_code(await status_of_execute(client, digest), f"working directory {place!r}", INVALID_ARGUMENT)


@behaviour(28, "the command runs in the working directory, and output paths are relative to it", execution=True)
async def working_directory(client: Client) -> None:
    """Also those that go up and stay inside the input root."""
    script = "basename $PWD; echo here > out; echo above > ../beside"
    result = await run(
        client,
        script,
        inputs=Inputs(directories=["a/b"]),
        outputs=["out", "../beside"],
        command={"working_directory": "a/b"},
    )
    expect_equal(await stdout_of(client, result), b"b\n", "the directory in which the command runs")
    expect_equal(await content_of(client, result, "out"), b"here\n", "output 'out'")
    expect_equal(await content_of(client, result, "../beside"), b"above\n", "output '../beside'")


@behaviour(28, "an output path that escapes the input root is refused", execution=True)
async def escaping(client: Client) -> None:
    """However it is spelt; what would be read there is not the action's."""
    inputs = Inputs(directories=["a/b"])
    for path in ("../../../etc/passwd", "c/../../../../x", "/etc/passwd", "../../.."):
        digest = await action(client, "true", inputs=inputs, outputs=[path], command={"working_directory": "a/b"})
        try:
            response = await execute(client, digest)
        except aio.AioRpcError as error:
            expect_code(status_of(error), f"output path {path!r}", INVALID_ARGUMENT, FAILED_PRECONDITION)
            continue
        expect_code(response.status, f"output path {path!r}", INVALID_ARGUMENT, FAILED_PRECONDITION, 0)
        if not response.status.code:
            none = (0, 0, 0)
            result = response.result
            found = (len(result.output_files), len(result.output_directories), len(result.output_symlinks))
            expect_equal(found, none, f"output files, directories and symlinks of {path!r}, which is outside")
            # REAPI forbids absolute paths; of those that climb out it says nothing.
            raise NotSupported("output paths outside of the input root are passed over, not refused")


@behaviour(28, "a symlink does not lead the collecting of outputs out of the input root", execution=True)
async def escaping_link(client: Client) -> None:
    """The action makes a link to /etc and names a file behind it: that file is never an output."""
    digest = await action(client, "ln -s /etc link", outputs=["link/passwd"])
    response = await execute(client, digest)
    leaked = [file.path for file in response.result.output_files]
    expect(not leaked, f"expected no output from outside the input root, got {leaked}")


@behaviour(29, "the parents of outputs exist before the command runs, the outputs do not", execution=True)
async def parents(client: Client) -> None:
    """For output paths, and for files and directories of the older fields."""
    script = (
        "for d in x/y p/q; do test -d $d || exit 3; done; for o in x/y/file p/q/dir; do test ! -e $o || exit 4; done"
    )
    older: dict[str, Any] = {"output_files": ["x/y/file"], "output_directories": ["p/q/dir"]}
    for options in ({"outputs": ["x/y/file", "p/q/dir"]}, {"command": older}):
        if options.get("command") and not client.serves_2_0:
            raise NotSupported("clients of 2.0, which know no output_paths, are not served")
        response = await execute(client, await action(client, script, **options))
        expect_code(response.status, "the status of the run", 0)
        code = response.result.exit_code
        expect(code != 3, "expected the parents of outputs to exist before the command runs, one does not")
        expect(code != 4, "expected the outputs not to exist before the command runs, one does")
        expect_equal(code, 0, "the exit code")


@behaviour(29, "inputs are where the input root says, with content, links and modes", execution=True)
async def inputs_are_there(client: Client) -> None:
    """Files, executables, symlinks to both, a dangling one, empty directories, and odd names."""
    data = fresh().hex().encode()
    inputs = Inputs(
        files={"d/file": data, "ü & spaces\n'\"$x/ö": b"odd"},
        executables={"d/run": b"#!/bin/sh\necho ran\n"},
        symlinks={"to-file": "d/file", "to-directory": "d", "dangling": "no/where", "d/up": "../to-file"},
        directories=["empty/inner"],
    )
    script = (
        "cat d/file to-file d/up to-directory/file && d/run && test -L dangling && test -d empty/inner"
        " && test ! -x d/file && cat ü*/ö && readlink to-directory"
    )
    result = await run(client, script, inputs=inputs)
    expect_equal(await stdout_of(client, result), data * 4 + b"ran\noddd\n", "what the action read")


@behaviour(36, "an action that rewrites an input corrupts neither the CAS nor later actions", execution=True)
async def rewritten(client: Client) -> None:
    """Writing in place, by whatever means the action's user has; and the next action with the same input sees the blob."""
    data = fresh().hex().encode()
    files = {"in": data, "sub/in": data}
    script = "chmod u+w in sub sub/in 2>/dev/null; (echo changed > in; echo more >> sub/in) 2>/dev/null; true"
    for _ in range(2):
        await run(client, script, inputs=Inputs(files=files))
    expect_equal(await client.fetch(digest_of(data)), data, "the blob of an input that an action rewrote")
    for _ in range(3):
        result = await run(client, "cat in sub/in", inputs=Inputs(files=files))
        expect_equal(await stdout_of(client, result), data * 2, "an input that another action rewrote")


@behaviour(36, "an action may replace and remove its inputs", execution=True)
async def replaced(client: Client) -> None:
    """Input directories are writable for the action: compilers write beside their sources."""
    inputs = Inputs(files={"d/a": fresh(), "d/b": fresh()})
    script = "rm d/a && mv d/b d/c && echo new > d/a && echo more > d/new && ls d"
    result = await run(client, script, inputs=inputs)
    expect_equal(await stdout_of(client, result), b"a\nc\nnew\n", "the directory after the action changed it")


@behaviour(36, "one digest used as executable and as plain file gives two files", execution=True)
async def both_modes(client: Client) -> None:
    """The mode belongs to the node, not to the blob."""
    data = b"#!/bin/sh\n# " + fresh().hex().encode() + b"\necho ran\n"
    inputs = Inputs(files={"plain": data}, executables={"tool": data})
    result = await run(client, "./tool; test -x plain && echo plain is executable; cmp plain tool", inputs=inputs)
    expect_equal(await stdout_of(client, result), b"ran\n", "what came of the two files")


@behaviour(36, "a program that has just been laid out can be run: no ETXTBSY", execution=True)
async def text_busy(client: Client) -> None:
    """20 actions that each run a new program at once, several side by side: a descriptor that was open for writing in
    another thread when a process was started makes the kernel refuse.
    """

    async def one(place: int) -> None:
        program = b"#!/bin/sh\necho " + str(place).encode() + b" # " + fresh().hex().encode() + b"\n"
        inputs = Inputs(executables={"tool": program})
        digest = await action(client, ["./tool"], inputs=inputs, environment={"PATH": PATH})
        result = await succeeded(client, await execute(client, digest))
        expect_equal(await stdout_of(client, result), f"{place}\n".encode(), "what a new program printed")
        copied = await action(client, "cp tool own && exec ./own", inputs=inputs)
        result = await succeeded(client, await execute(client, copied))
        expect_equal(await stdout_of(client, result), f"{place}\n".encode(), "what a copied program printed")

    async with asyncio.TaskGroup() as tasks:
        for place in range(20):
            tasks.create_task(one(place))


@behaviour(37, "two inputs of the same content look like one file to #pragma once", execution=True)
async def same_content(client: Client) -> None:
    """Compilers take files for the same that share an inode, or that agree in time, size and content."""
    data = fresh()
    inputs = Inputs(files={"a/one.h": data, "b/two.h": data})
    result = await run(client, "stat -c '%i' a/one.h b/two.h; stat -c '%Y' a/one.h b/two.h", inputs=inputs)
    inode_a, inode_b, time_a, time_b = (await stdout_of(client, result)).split()
    expect(
        inode_a == inode_b or time_a == time_b,
        f"expected one inode or one time for two inputs of one content, got inodes {inode_a!r}, {inode_b!r}"
        f" and times {time_a!r}, {time_b!r}",
    )


@behaviour(37, "inputs of the same content under one name are told apart by directory", execution=True)
async def same_name(client: Client) -> None:
    """Sharing a file must not make one of the two paths vanish."""
    data = b"same"
    inputs = Inputs(files={f"{place}/x": data for place in "abc"})
    result = await run(client, "cat a/x b/x c/x", inputs=inputs)
    expect_equal(await stdout_of(client, result), data * 3, "three inputs of one content")
