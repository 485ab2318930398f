"""Behaviours 27 and 38: what an action sees of its surroundings, and what is left of it."""

from __future__ import annotations

import asyncio
import secrets
import time

from integration.conformance.actions import action, execute, run, stdout_of, succeeded
from integration.conformance.case import NotSupported, behaviour
from integration.conformance.client import Client
from integration.conformance.expect import (
    FAILED_PRECONDITION,
    INVALID_ARGUMENT,
    expect,
    expect_code,
    expect_equal,
    fail,
)  # fmt: skip
from integration.conformance.inputs import Inputs

OWN_VARIABLES = frozenset({"PWD", "OLDPWD", "SHLVL", "_"})
"""What the shell adds by itself."""
DECLARED_VARIABLES = frozenset(
    {"PATH", "HOME", "TMPDIR", "TMP", "TEMP", "TEMPDIR", "USER", "LOGNAME", "LANG", "LC_ALL", "SHELL", "TZ"}
)
"""What a worker may reasonably declare as its default."""
GONE_SECONDS = 10.0


def marker_script() -> tuple[str, str]:
    """A number that no other process has on its command line, and a script that starts processes with it: in the
    background, in a session of its own, and an orphan in a session of its own that ignores signals.
    """
    marker = f"7{secrets.randbelow(10**6):06}.{secrets.randbelow(10**9):09}"
    script = (
        f"sleep {marker} & setsid sleep {marker} & ( setsid sh -c 'trap \"\" TERM HUP INT; sleep {marker} & wait' & )"
    )
    return marker, script


async def expect_gone(client: Client, marker: str) -> None:
    """Hold the worker to having killed every process of `marker_script`, as an action on the same machine sees it.

    A worker that shows its actions no other processes passes: nothing can be said against it.
    """
    # The marker comes from a file, or the search would find itself.
    find = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -qF -f marker && echo ${p#/proc/}; done; true"
    ends = time.monotonic() + GONE_SECONDS
    while True:
        result = await run(client, find, inputs=Inputs(files={"marker": marker.encode()}), do_not_cache=True)
        left = (await stdout_of(client, result)).split()
        if not left:
            return
        if time.monotonic() > ends:
            fail(f"expected all processes of the action to be dead, {len(left)} still run {GONE_SECONDS:g} s later")
        await asyncio.sleep(0.3)


@behaviour(
    27, "argv[0] may be absolute, relative to the working directory, or looked up in the Command's PATH", execution=True
)
async def programs(client: Client) -> None:
    """And it is not looked up in the current directory."""
    tool = b"#!/bin/sh\necho tool in ${PWD##*/}\n"
    inputs = Inputs(executables={"work/bin/tool": tool, "work/tool": tool})
    inside = {"working_directory": "work"}
    expect_equal(await stdout_of(client, await run(client, ["/bin/echo", "a"])), b"a\n", "an absolute argv[0]")
    for program in ("bin/tool", "./tool"):
        result = await run(client, [program], inputs=inputs, command=inside)
        expect_equal(await stdout_of(client, result), b"tool in work\n", f"argv[0] {program!r}")
    result = await run(client, ["echo", "b"], environment={"PATH": "/nonexistent:/usr/bin:/bin"})
    expect_equal(await stdout_of(client, result), b"b\n", "argv[0] looked up in PATH")
    digest = await action(client, ["tool"], inputs=inputs, command=inside)
    response = await execute(client, digest)
    expect(
        response.status.code != 0 or response.result.exit_code != 0,
        "expected a program that is only in the working directory not to be found through PATH, it ran",
    )


@behaviour(27, "a program that is not there is the action's own failure", execution=True)
async def no_program(client: Client) -> None:
    """Told as a status or as an exit code, 127 in a shell, at once, and not as an internal error."""
    response = await execute(client, await action(client, ["/nonexistent/tool"]))
    if response.status.code:
        expect_code(response.status, "a program that is not there", FAILED_PRECONDITION, INVALID_ARGUMENT)
    else:
        expect(response.result.exit_code != 0, "expected a failure of a program that is not there, got exit code 0")


@behaviour(27, "the Command's environment overrides the worker's default", execution=True)
async def environment(client: Client) -> None:
    """Empty values and values with spaces and equal signs stay as they are."""
    wanted = {"A": "1", "EMPTY": "", "ODD": "a=b c", "PATH": "/opt/none:/usr/bin:/bin"}
    result = await run(client, ["/usr/bin/env", "-0"], environment=wanted)
    got = dict(entry.split("=", 1) for entry in (await stdout_of(client, result)).decode().split("\0") if entry)
    for name, value in wanted.items():
        expect_equal(got.get(name), value, f"variable {name} of the action")


@behaviour(27, "nothing of the worker's own environment leaks in", execution=True)
async def no_leak(client: Client) -> None:
    """Beside the Command's variables there are only those of a declared default."""
    result = await run(client, ["/usr/bin/env", "-0"], environment={"A": "1", "PATH": "/usr/bin:/bin"})
    names = {entry.split("=", 1)[0] for entry in (await stdout_of(client, result)).decode().split("\0") if entry}
    unexpected = names - OWN_VARIABLES - DECLARED_VARIABLES - {"A"}
    expect(not unexpected, f"expected no variables beyond a declared default, got {sorted(unexpected)}")
    canary = client.options.leak_variable
    expect(not canary or canary not in names, f"expected the worker's own {canary} not to reach the action, it does")


@behaviour(38, "processes left behind by an action are killed", execution=True)
async def left_behind(client: Client) -> None:
    """The action ends well and leaves three processes, one of which ignores every polite signal."""
    marker, script = marker_script()
    await run(client, f"{script}; sleep 0.3")
    await expect_gone(client, marker)


@behaviour(38, "a process left behind that holds stdout open does not hold up the result", execution=True)
async def held_stdout(client: Client) -> None:
    """The result is there when the command ends, not when the last writer does."""
    before = time.monotonic()
    result = await run(client, "echo first; (setsid sleep 50 &) ; exit 0")
    expect_equal(await stdout_of(client, result), b"first\n", "stdout of an action that leaves a process behind")
    seconds = time.monotonic() - before
    expect(seconds < 20, f"expected the result without waiting for a process left behind, it took {seconds:.0f} s")


@behaviour(38, "the action's TMPDIR exists, is its own, and is removed", execution=True)
async def tmpdir(client: Client) -> None:
    """What is left there must not pile up on the worker, nor be seen by the next action."""
    result = await run(client, 'printf %s "$TMPDIR"; [ -z "$TMPDIR" ] || echo x > "$TMPDIR/left"')
    path = (await stdout_of(client, result)).decode()
    if not path:
        raise NotSupported("the worker sets no TMPDIR")
    digest = await action(client, 'test ! -e "$(cat path)/left"', inputs=Inputs(files={"path": path.encode()}))
    response = await execute(client, digest)
    expect_equal(
        response.result.exit_code, 0, "the exit code of a search for what an earlier action left in its TMPDIR"
    )
    await succeeded(client, response)
