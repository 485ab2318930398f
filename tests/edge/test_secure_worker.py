"""A worker process of another machine, as it would reach a server that asks for credentials."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2
from grpc import aio

from cas.digest import Digest
from cas.remote import RemoteStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.config import parse
from rexec.server import running
from tests.edge.certificates import Authority

GUARD_SECONDS = 60


@asynccontextmanager
async def worker(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rexec", "worker", "--slots", "1", *arguments, stderr=asyncio.subprocess.PIPE
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


async def executed(channel: aio.Channel, command: re_pb2.Command) -> re_pb2.ExecuteResponse:
    """What the server answers once the command has run."""
    encoded = command.SerializeToString()
    action = re_pb2.Action(
        command_digest=Digest.of(encoded).to_proto(), input_root_digest=Digest.of(b"").to_proto()
    ).SerializeToString()
    assert await RemoteStore(channel).write_many([(Digest.of(data), data) for data in (encoded, action)]) == {}
    call: Any = channel.unary_stream("/build.bazel.remote.execution.v2.Execution/Execute")
    request = re_pb2.ExecuteRequest(action_digest=Digest.of(action).to_proto(), inline_stdout=True)
    async for data in call(request.SerializeToString()):
        operation = operations_pb2.Operation.FromString(data)
        if operation.done:
            response = re_pb2.ExecuteResponse()
            assert operation.response.Unpack(response)
            return response
    raise AssertionError("the stream ended before the operation did")


async def test_a_worker_with_a_certificate_and_a_token_is_given_work(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server_pair, worker_pair = authority.pair("server"), authority.pair("worker")
    sha256 = hashlib.sha256(b"sesame").hexdigest()
    (tmp_path / "tokens.toml").write_text(f'[[token]]\nidentity = "w"\nsha256 = "{sha256}"\nrights = ["work"]\n')
    (tmp_path / "token").write_text("sesame\n")
    config = parse(
        f'state_dir = "{tmp_path}/state"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]\n[server.tls]\n'
        f'certificate = "{server_pair.certificate}"\nkey = "{server_pair.key}"\nclient_ca = "{authority.file}"\n'
        f'[auth.tokens]\nfile = "{tmp_path}/tokens.toml"'
    )
    async with asyncio.timeout(GUARD_SECONDS), running(config) as server:
        trust = "--tls-ca", str(authority.file)
        shown = "--tls-certificate", str(worker_pair.certificate), "--tls-key", str(worker_pair.key)
        where = "--server", f"grpcs://{server.addresses[0]}", "--work-dir", str(tmp_path / "work")
        async with (
            worker(*where, *trust, *shown, "--token-file", str(tmp_path / "token")),
            aio.insecure_channel(f"unix:{server.socket}") as channel,
        ):
            response = await executed(channel, re_pb2.Command(arguments=["/bin/echo", "through TLS"]))
    assert response.result.stdout_raw == b"through TLS\n"


@pytest.mark.parametrize("option", ["--token-file", "--tls-ca"])
async def test_a_worker_without_the_file_that_it_is_to_use_says_so(tmp_path: Path, option: str) -> None:
    absent = str(tmp_path / "absent")
    arguments = "--server", "grpcs://127.0.0.1:1", "--work-dir", str(tmp_path / "work"), option, absent
    async with asyncio.timeout(GUARD_SECONDS), worker(*arguments) as process:
        _out, error = await process.communicate()
    assert process.returncode == 1
    assert absent in error.decode()
    assert "Traceback" not in error.decode()


async def test_a_worker_attaches_to_whichever_of_its_schedulers_answers(tmp_path: Path) -> None:
    config = parse(f'state_dir = "{tmp_path}/state"\nslots = 0\n[server]\nlisten = ["127.0.0.1:0"]')
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        absent = f"127.0.0.1:{taken.getsockname()[1]}"
        async with asyncio.timeout(GUARD_SECONDS), running(config) as server:
            here = f"grpc://{server.addresses[0]}"
            where = "--server", here, "--scheduler", f"{absent},{here}", "--work-dir", str(tmp_path / "work")
            async with worker(*where), aio.insecure_channel(f"unix:{server.socket}") as channel:
                response = await executed(channel, re_pb2.Command(arguments=["/bin/echo", "directly"]))
    assert response.result.stdout_raw == b"directly\n"
