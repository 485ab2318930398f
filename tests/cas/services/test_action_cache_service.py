"""GetActionResult and UpdateActionResult (behaviours 40, 51, 52)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from cas.context import Identity, RequestContext
from cas.digest import EMPTY, Digest
from cas.errors import ActionResultNotFound, Code, MalformedRequest, NotAllowed
from cas.hashing import DigestFunction
from cas.services.action_cache import MAX_INLINE_BYTES, MAX_RESULT_BYTES, ActionCacheService
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

from .cache import Cache

KEY = Digest.of(b'{"fingerprint": "of moon, no Action at all"}')


def output(path: str, content: bytes) -> re_pb2.OutputFile:
    return re_pb2.OutputFile(path=path, digest=Digest.of(content).to_proto())


class Client:
    """A client of the action cache of the instance "main"."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.service = ActionCacheService(cache.instances)
        self.context = RequestContext()

    async def update(
        self, result: re_pb2.ActionResult, key: Digest = KEY, instance_name: str = "main", function: int = 0
    ) -> re_pb2.ActionResult:
        request = re_pb2.UpdateActionResultRequest(
            instance_name=instance_name, action_digest=key.to_proto(), action_result=result
        )
        request.digest_function = function  # type: ignore[assignment]
        return await self.service.UpdateActionResult(request, self.context)

    async def get(
        self,
        key: Digest = KEY,
        instance_name: str = "main",
        function: int = 0,
        files: tuple[str, ...] = (),
        stdout: bool = False,
        stderr: bool = False,
    ) -> re_pb2.ActionResult:
        request = re_pb2.GetActionResultRequest(
            instance_name=instance_name,
            action_digest=key.to_proto(),
            inline_stdout=stdout,
            inline_stderr=stderr,
            inline_output_files=files,
        )
        request.digest_function = function  # type: ignore[assignment]
        return await self.service.GetActionResult(request, self.context)

    async def full_result(self) -> re_pb2.ActionResult:
        """A result with all kinds of outputs, whose blobs exist."""
        leaf = re_pb2.Directory(files=[re_pb2.FileNode(name="in", digest=Digest.of(b"in tree").to_proto())])
        tree = re_pb2.Tree(root=leaf)
        await self.cache.add(b"file", b"out", b"err", b"in tree", leaf.SerializeToString(), tree.SerializeToString())
        result = re_pb2.ActionResult(
            output_files=[output("a.o", b"file")],
            output_directories=[
                re_pb2.OutputDirectory(
                    path="",
                    tree_digest=Digest.of(tree.SerializeToString()).to_proto(),
                    root_directory_digest=Digest.of(leaf.SerializeToString()).to_proto(),
                )
            ],
            output_symlinks=[re_pb2.OutputSymlink(path="link", target="nowhere")],
            stdout_digest=Digest.of(b"out").to_proto(),
            stderr_digest=Digest.of(b"err").to_proto(),
            exit_code=0,
            execution_metadata=re_pb2.ExecutedActionMetadata(worker="w"),
        )
        result.output_files[0].node_properties.unix_mode.value = 0o755
        return result


def answered(result: re_pb2.ActionResult) -> re_pb2.ActionResult:
    """`result` as it comes back."""
    result.execution_metadata.SetInParent()
    return result


@pytest.fixture
def client(cache: Cache) -> Client:
    return Client(cache)


async def test_52_a_result_comes_back_as_it_was_given(client: Client) -> None:
    result = await client.full_result()
    assert await client.update(result) == result
    assert await client.get() == result


async def test_52_an_unknown_action_is_not_found(client: Client) -> None:
    with pytest.raises(ActionResultNotFound) as refused:
        await client.get()
    assert refused.value.code == Code.NOT_FOUND


@pytest.mark.parametrize("lost", [b"file", b"out", b"err", b"in tree"])
async def test_52_a_result_of_which_a_blob_is_gone_is_not_found(client: Client, lost: bytes) -> None:
    result = await client.full_result()
    await client.update(result)
    other = Client(Cache(results=client.cache.results))
    await other.cache.add(*[blob for blob in client.cache.memory.blobs.values() if blob != lost])
    with pytest.raises(ActionResultNotFound):
        await other.get()
    await other.cache.add(lost)
    assert await other.get() == result


async def test_a_result_without_outputs_is_kept(client: Client) -> None:
    """A lint or a check may leave nothing but its exit code."""
    await client.update(re_pb2.ActionResult())
    assert await client.get() == answered(re_pb2.ActionResult())


async def test_a_result_without_execution_metadata_gets_an_empty_one(client: Client) -> None:
    """Buck2 refuses a result that has none."""
    await client.update(re_pb2.ActionResult(exit_code=0))
    assert (await client.get()).HasField("execution_metadata")


async def test_a_later_result_takes_the_place_of_an_earlier_one(client: Client) -> None:
    await client.cache.add(b"1", b"2")
    await client.update(re_pb2.ActionResult(output_files=[output("a", b"1")]))
    await client.update(re_pb2.ActionResult(output_files=[output("a", b"2")]))
    assert (await client.get()).output_files[0].digest == Digest.of(b"2").to_proto()


async def test_instances_and_functions_do_not_share_results(client: Client) -> None:
    await client.update(re_pb2.ActionResult(exit_code=0))
    with pytest.raises(ActionResultNotFound):
        await client.get(instance_name="")
    with pytest.raises(ActionResultNotFound):
        await client.get(function=DigestFunction.BLAKE3.value)
    assert await client.get(function=DigestFunction.SHA256.value) == answered(re_pb2.ActionResult())


@pytest.mark.parametrize("function", list(DigestFunction))
async def test_digests_in_a_result_are_of_the_function_of_the_request(client: Client, function: DigestFunction) -> None:
    [digest] = await client.cache.add(b"content", function=function)
    key = Digest.of(b"action", function)
    result = re_pb2.ActionResult(
        output_files=[re_pb2.OutputFile(path="a", digest=digest.to_proto())], stdout_digest=digest.to_proto()
    )
    await client.update(result, key, function=function.value)
    found = await client.get(key, function=function.value, stdout=True, files=("a",))
    assert (found.stdout_raw, found.output_files[0].contents) == (b"content", b"content")


async def test_52_what_is_asked_for_is_inlined_and_nothing_else(client: Client) -> None:
    result = await client.full_result()
    await client.update(result)
    assert (await client.get(stdout=True)).stdout_raw == b"out"
    assert (await client.get(stdout=True)).stderr_raw == b""
    assert (await client.get(stderr=True)).stderr_raw == b"err"
    found = await client.get(files=("a.o", "not/there"))
    assert (found.output_files[0].contents, found.stdout_raw) == (b"file", b"")
    assert found.output_files[0].digest == result.output_files[0].digest
    assert found.output_files[0].node_properties.unix_mode.value == 0o755
    assert await client.get() == result, "inlining must not change what is kept"


async def test_52_inlining_is_bounded_and_goes_on_with_what_fits(client: Client) -> None:
    blobs = [b"a" * (MAX_INLINE_BYTES - 10), b"b" * 11, b"c" * 10, b"d"]
    await client.cache.add(*blobs)
    await client.update(re_pb2.ActionResult(output_files=[output(chr(97 + n), blob) for n, blob in enumerate(blobs)]))
    found = await client.get(files=("a", "b", "c", "d"))
    assert [len(file.contents) for file in found.output_files] == [MAX_INLINE_BYTES - 10, 0, 10, 0]


async def test_52_a_huge_stdout_is_not_inlined(client: Client) -> None:
    [digest] = await client.cache.add(b"x" * (MAX_INLINE_BYTES + 1))
    await client.update(re_pb2.ActionResult(stdout_digest=digest.to_proto()))
    found = await client.get(stdout=True)
    assert (found.stdout_raw, found.stdout_digest) == (b"", digest.to_proto())


async def test_bytes_that_the_client_inlined_himself_are_kept(client: Client) -> None:
    await client.cache.add(b"out")
    result = re_pb2.ActionResult(stdout_raw=b"out", stdout_digest=Digest.of(b"out").to_proto())
    await client.update(result)
    assert await client.get(stdout=True) == answered(result)


async def test_39_the_empty_blob_needs_no_upload(client: Client) -> None:
    empty = EMPTY[DigestFunction.SHA256].to_proto()
    result = re_pb2.ActionResult(
        output_files=[re_pb2.OutputFile(path="stamp", digest=empty)], stdout_digest=empty, stderr_digest=empty
    )
    await client.update(result)
    assert await client.get(stdout=True, stderr=True, files=("stamp",)) == answered(result)


async def test_51_an_identity_that_may_not_update_is_refused_and_may_still_read(client: Client) -> None:
    await client.update(re_pb2.ActionResult(exit_code=0))
    client.context = RequestContext(identity=Identity(may_update_action_cache=False))
    with pytest.raises(NotAllowed, match=r"^not allowed$") as refused:
        await client.update(re_pb2.ActionResult(exit_code=1))
    assert refused.value.code == Code.PERMISSION_DENIED
    assert (await client.get()).exit_code == 0


async def test_an_identity_that_may_not_read_is_refused(client: Client) -> None:
    client.context = RequestContext(identity=Identity(may_read=False))
    with pytest.raises(NotAllowed):
        await client.get()
    with pytest.raises(NotAllowed):
        await client.update(re_pb2.ActionResult())


async def test_an_update_without_a_result_is_refused(client: Client) -> None:
    request = re_pb2.UpdateActionResultRequest(instance_name="main", action_digest=KEY.to_proto())
    with pytest.raises(MalformedRequest, match="action_result is not set"):
        await client.service.UpdateActionResult(request, client.context)


@pytest.mark.parametrize(
    "key", [Digest("", 0), Digest("A" * 64, 1), Digest("a" * 63, 1), Digest("a" * 64, -1)], ids=str
)
async def test_40_a_key_that_is_no_digest_is_refused(client: Client, key: Digest) -> None:
    with pytest.raises(MalformedRequest, match="action_digest"):
        await client.get(key)
    with pytest.raises(MalformedRequest, match="action_digest"):
        await client.update(re_pb2.ActionResult(), key)


async def test_an_unknown_instance_is_refused(client: Client) -> None:
    with pytest.raises(MalformedRequest, match="'nobody'"):
        await client.get(instance_name="nobody")
    with pytest.raises(MalformedRequest, match="'nobody'"):
        await client.update(re_pb2.ActionResult(), instance_name="nobody")


BAD = re_pb2.Digest(hash="A" * 64, size_bytes=1)
GOOD = Digest.of(b"x").to_proto()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="a", digest=BAD)]), "output_files[0].digest"),
        (lambda: re_pb2.ActionResult(output_files=[re_pb2.OutputFile(path="a")]), "output_files[0].digest"),
        (lambda: re_pb2.ActionResult(output_files=[re_pb2.OutputFile(digest=GOOD)]), "output_files[0] has no path"),
        (
            lambda: re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="d")]),
            "output_directories[0] has neither",
        ),
        (
            lambda: re_pb2.ActionResult(output_directories=[re_pb2.OutputDirectory(path="d", tree_digest=BAD)]),
            "output_directories[0].tree_digest",
        ),
        (
            lambda: re_pb2.ActionResult(
                output_directories=[re_pb2.OutputDirectory(tree_digest=GOOD, root_directory_digest=BAD)]
            ),
            "output_directories[0].root_directory_digest",
        ),
        (lambda: re_pb2.ActionResult(stdout_digest=BAD), "stdout_digest"),
        (lambda: re_pb2.ActionResult(stderr_digest=re_pb2.Digest(hash="a" * 64, size_bytes=-1)), "stderr_digest"),
        (
            lambda: re_pb2.ActionResult(output_symlinks=[re_pb2.OutputSymlink(path="l")]),
            "output_symlinks[0] has no target",
        ),
        (
            lambda: re_pb2.ActionResult(output_file_symlinks=[re_pb2.OutputSymlink(target="t")]),
            "output_file_symlinks[0] has no path",
        ),
        (
            lambda: re_pb2.ActionResult(output_directory_symlinks=[re_pb2.OutputSymlink(path="l")]),
            "output_directory_symlinks[0] has no target",
        ),
        (lambda: re_pb2.ActionResult(stdout_raw=bytes(MAX_RESULT_BYTES)), f"{MAX_RESULT_BYTES} is the most"),
    ],
)
async def test_40_a_result_with_what_is_no_digest_or_path_is_refused_and_not_kept(
    client: Client, make: Callable[[], re_pb2.ActionResult], said: str
) -> None:
    with pytest.raises(MalformedRequest) as refused:
        await client.update(make())
    assert said in str(refused.value)
    with pytest.raises(ActionResultNotFound):
        await client.get()
