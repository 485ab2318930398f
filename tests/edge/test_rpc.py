"""The binding of services to gRPC, over a real connection on loopback."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from structlog.testing import capture_logs

from cas.context import Identity, RequestContext
from cas.digest import Digest
from cas.errors import (
    BlobNotFound,
    Code,
    InputsMissing,
    MalformedRequest,
    NotAuthenticated,
    QueueFull,
    SchedulerStops,
    StatusError,
)
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.google.bytestream import bytestream_pb2
from rexec.auth.credentials import Credentials
from rexec.rpc import MAX_RECEIVED_BYTES, MAX_TEXT_BYTES, RpcServer, request_metadata, shortened

CAS = "/build.bazel.remote.execution.v2.ContentAddressableStorage/"


class Observed:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Code]] = []
        self.bytes: list[tuple[int, int]] = []

    def rpc_ended(self, method: str, code: Code, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        self.calls.append((method.rpartition("/")[2], code))
        self.bytes.append((received_bytes, sent_bytes))


class Scripted:
    """A CAS service that does what the test says."""

    def __init__(self) -> None:
        self.context: RequestContext | None = None
        self.failure: Exception | None = None
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def FindMissingBlobs(
        self, request: re_pb2.FindMissingBlobsRequest, context: RequestContext
    ) -> re_pb2.FindMissingBlobsResponse:
        self.context = context
        if self.failure is not None:
            raise self.failure
        return re_pb2.FindMissingBlobsResponse(missing_blob_digests=request.blob_digests)

    async def BatchReadBlobs(self, _request: re_pb2.BatchReadBlobsRequest, _context: RequestContext) -> Any:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def GetTree(
        self, _request: re_pb2.GetTreeRequest, _context: RequestContext
    ) -> AsyncIterator[re_pb2.GetTreeResponse]:
        yield re_pb2.GetTreeResponse(next_page_token="first")
        if self.failure is not None:
            raise self.failure
        yield re_pb2.GetTreeResponse(next_page_token="second")


class Counting:
    """A ByteStream service that answers a Write after its first message."""

    async def Write(
        self, requests: AsyncIterator[bytestream_pb2.WriteRequest], _context: RequestContext
    ) -> bytestream_pb2.WriteResponse:
        first = await anext(requests)
        return bytestream_pb2.WriteResponse(committed_size=len(first.data))


@asynccontextmanager
async def serving(*services: tuple[Any, str, object], **options: Any) -> AsyncIterator[aio.Channel]:
    server = RpcServer(**options)
    for source, name, service in services:
        server.add(source, name, service)
    port = server.listen("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(0)


def scripted(service: Scripted) -> tuple[Any, str, object]:
    return re_pb2, "ContentAddressableStorage", service


async def find_missing(channel: aio.Channel, data: bytes, **options: Any) -> bytes:
    call: Any = channel.unary_unary(CAS + "FindMissingBlobs")
    result: bytes = await call(data, **options)
    return result


def rich_status(error: aio.AioRpcError) -> status_pb2.Status:
    trailers = dict(error.trailing_metadata() or ())
    details: Any = trailers["grpc-status-details-bin"]
    return status_pb2.Status.FromString(details)


async def test_a_unary_call_is_answered_and_counted() -> None:
    observed = Observed()
    async with serving(scripted(Scripted()), observer=observed) as channel:
        request = re_pb2.FindMissingBlobsRequest(blob_digests=[re_pb2.Digest(hash="aa", size_bytes=1)])
        answer = re_pb2.FindMissingBlobsResponse.FromString(await find_missing(channel, request.SerializeToString()))
    assert answer.missing_blob_digests[0].hash == "aa"
    assert observed.calls == [("FindMissingBlobs", Code.OK)]
    assert observed.bytes == [(request.ByteSize(), answer.ByteSize())]


async def test_the_bytes_of_streams_are_counted() -> None:
    observed = Observed()
    message = bytestream_pb2.WriteRequest(data=b"12345")
    async with serving((bytestream_pb2, "ByteStream", Counting()), observer=observed) as channel:
        stub: Any = channel.stream_unary("/google.bytestream.ByteStream/Write")
        call: Any = stub()
        await call.write(message.SerializeToString())
        answer: bytes = await call
    async with serving(scripted(Scripted()), observer=observed) as channel:
        tree: Any = channel.unary_stream(CAS + "GetTree")
        pages: list[bytes] = [page async for page in tree(b"")]
    assert observed.bytes == [(message.ByteSize(), len(answer)), (0, sum(map(len, pages)))]
    assert len(pages) == 2


async def test_a_request_that_does_not_parse_is_the_clients_fault() -> None:
    async with serving(scripted(Scripted())) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"\xff\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "FindMissingBlobsRequest" in (caught.value.details() or "")


async def test_an_rpc_without_a_method_is_unimplemented() -> None:
    async with serving(scripted(Scripted())) as channel:
        call: Any = channel.unary_unary(CAS + "BatchUpdateBlobs")
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_missing_inputs_arrive_with_their_violations() -> None:
    service = Scripted()
    service.failure = InputsMissing([Digest.of(b"one"), Digest.of(b"two")])
    async with serving(scripted(service)) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    failure = error_details_pb2.PreconditionFailure()
    assert rich_status(caught.value).details[0].Unpack(failure)
    assert [violation.subject for violation in failure.violations] == [
        Digest.of(b"one").blob_name(),
        Digest.of(b"two").blob_name(),
    ]


async def test_details_too_large_for_a_trailer_are_left_out_and_the_status_stays() -> None:
    service = Scripted()
    service.failure = InputsMissing([Digest.of(b"%d" % number) for number in range(1000)])
    async with serving(scripted(service)) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_our_own_fault_is_internal_and_says_nothing_of_our_insides(capsys: pytest.CaptureFixture[str]) -> None:
    service = Scripted()
    service.failure = KeyError("secret detail")
    async with serving(scripted(service)) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (caught.value.details() or "")
    assert "secret detail" in "".join(capsys.readouterr())


@pytest.mark.parametrize("failure", [SchedulerStops(), QueueFull("full")])
async def test_the_stop_of_the_scheduler_is_no_line_for_each_call(failure: StatusError) -> None:
    service = Scripted()
    service.failure = failure
    with capture_logs() as logs:
        async with serving(scripted(service)) as channel:
            with pytest.raises(aio.AioRpcError):
                await find_missing(channel, b"")
    assert [line["event"] for line in logs] == ([] if isinstance(failure, SchedulerStops) else ["call refused"])


@pytest.mark.parametrize("failure", [BlobNotFound(Digest.of(b"x")), QueueFull("full")])
async def test_a_clients_fault_is_logged_without_a_traceback(
    failure: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Scripted()
    service.failure = failure
    async with serving(scripted(service)) as channel:
        with pytest.raises(aio.AioRpcError):
            await find_missing(channel, b"")
    logged = "".join(capsys.readouterr())
    assert "Traceback" not in logged
    assert logged.count("\n") <= 1


async def test_a_stream_that_fails_midway_gives_what_it_had_and_then_the_status() -> None:
    service = Scripted()
    service.failure = QueueFull("too many", retry_seconds=3)
    async with serving(scripted(service)) as channel:
        call: Any = channel.unary_stream(CAS + "GetTree")
        answers: Any = call(b"")
        first = re_pb2.GetTreeResponse.FromString(await answers.read())
        with pytest.raises(aio.AioRpcError) as caught:
            await answers.read()
    assert first.next_page_token == "first"
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    delay = error_details_pb2.RetryInfo()
    assert rich_status(caught.value).details[0].Unpack(delay)
    assert delay.retry_delay.seconds == 3


async def test_a_write_may_be_answered_before_its_stream_ends() -> None:
    async with serving((bytestream_pb2, "ByteStream", Counting())) as channel:
        stub: Any = channel.stream_unary("/google.bytestream.ByteStream/Write")
        call: Any = stub()
        await call.write(bytestream_pb2.WriteRequest(data=b"12345").SerializeToString())
        answer = bytestream_pb2.WriteResponse.FromString(await call)
    assert answer.committed_size == 5


async def test_a_client_that_goes_away_cancels_the_method() -> None:
    service, observed = Scripted(), Observed()
    async with serving(scripted(service), observer=observed) as channel:
        call: Any = channel.unary_unary(CAS + "BatchReadBlobs")
        pending: Any = call(b"")
        async with asyncio.timeout(10):
            await service.entered.wait()
            pending.cancel()
            await service.cancelled.wait()
    assert observed.calls == [("BatchReadBlobs", Code.CANCELLED)]


async def test_one_call_too_many_is_told_to_come_back() -> None:
    service = Scripted()
    async with serving(scripted(service), max_calls=1) as channel:
        call: Any = channel.unary_unary(CAS + "BatchReadBlobs")
        pending: Any = call(b"")
        async with asyncio.timeout(10):
            await service.entered.wait()
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
        pending.cancel()
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    delay = error_details_pb2.RetryInfo()
    assert rich_status(caught.value).details[0].Unpack(delay)


async def test_a_burst_of_calls_is_answered_whole() -> None:
    async with serving(scripted(Scripted())) as channel:
        call: Any = channel.unary_unary(CAS + "FindMissingBlobs")
        # All are sent before the event loop, which is the server's too, gets to the first.
        calls = [call(b"") for _ in range(3_000)]
        assert await asyncio.gather(*calls) == [b""] * len(calls)


async def test_the_context_says_who_calls_and_for_which_build() -> None:
    service = Scripted()

    async def authenticate(credentials: Credentials) -> Identity:
        if credentials.headers.get("authorization") != "Bearer good":
            raise NotAuthenticated("not authenticated")
        return Identity(name="someone")

    metadata = re_pb2.RequestMetadata(tool_invocation_id="build 7")
    headers = (
        ("authorization", "Bearer good"),
        ("build.bazel.remote.execution.v2.requestmetadata-bin", metadata.SerializeToString()),
    )
    async with serving(scripted(service), authenticate=authenticate) as channel:
        await find_missing(channel, b"", metadata=headers, timeout=50)
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert service.context is not None
    assert service.context.identity.name == "someone"
    assert service.context.request_metadata.tool_invocation_id == "build 7"
    assert 0 < (service.context.deadline_seconds or 0) <= 51  # gRPC rounds up


@pytest.mark.parametrize(
    "headers",
    [{}, {"requestmetadata-bin": b"\xff\xff"}, {"requestmetadata-bin": "text"}, {"other-bin": b"x"}],
)
def test_request_metadata_that_is_absent_or_broken_is_empty(headers: dict[str, str | bytes]) -> None:
    assert request_metadata(headers) == re_pb2.RequestMetadata()


@pytest.mark.parametrize("name", ["requestmetadata-bin", "google.devtools.remoteexecution.v1test.requestmetadata-bin"])
def test_request_metadata_of_older_clients_counts(name: str) -> None:
    sent = re_pb2.RequestMetadata(action_id="a")
    assert request_metadata({name: sent.SerializeToString()}) == sent


async def test_a_port_in_use_is_refused_at_once() -> None:
    first, second = RpcServer(), RpcServer()
    port = first.listen("127.0.0.1:0")
    with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
        second.listen(f"127.0.0.1:{port}")
    await first.stop(0)
    await second.stop(0)


@pytest.mark.parametrize(
    "text", ["漢" * 4_000, "\N{DESERET SMALL LETTER YEE}" * 4_000, "%" * 4_000, "\n" * 4_000, "x" * 4_000]
)
async def test_a_status_never_breaks_the_stream_with_a_text_too_long_for_a_header(text: str) -> None:
    service = Scripted()
    service.failure = MalformedRequest(text)
    async with serving(scripted(service)) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    said = caught.value.details()
    assert said
    assert text.startswith(said)


def test_a_short_text_is_sent_whole() -> None:
    assert shortened("blob 'ä' is 100% wrong\n") == "blob 'ä' is 100% wrong\n"
    assert shortened("x" * MAX_TEXT_BYTES) == "x" * MAX_TEXT_BYTES


async def test_details_and_text_together_fit_what_clients_receive() -> None:
    service = Scripted()
    service.failure = InputsMissing([Digest(f"{number:064x}", number) for number in range(44)])
    async with serving(scripted(service)) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"")
    trailers = dict(caught.value.trailing_metadata() or ())
    assert 3_900 < len(trailers["grpc-status-details-bin"]) <= 4_096


async def test_a_request_larger_than_any_client_sends_is_not_received() -> None:
    async with serving(scripted(Scripted())) as channel:
        with pytest.raises(aio.AioRpcError) as caught:
            await find_missing(channel, b"\x12\x00" * (MAX_RECEIVED_BYTES // 2 + 1))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_unix_socket_is_the_users_alone_from_the_start_whatever_his_umask_is(tmp_path: Path) -> None:
    server = RpcServer()
    before = os.umask(0)
    try:
        server.listen(f"unix:{tmp_path}/socket")
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "socket").stat().st_mode) & 0o077 == 0
    await server.stop(0)
