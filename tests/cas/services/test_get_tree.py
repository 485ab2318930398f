"""GetTree (behaviours 39 and 40, and REAPI's words on pages and on what is missing)."""

from __future__ import annotations

import pytest

from cas.context import Identity, RequestContext
from cas.digest import EMPTY, Digest
from cas.errors import BlobNotFound, MalformedRequest, NotAllowed
from cas.services.cas import MAX_MESSAGE_BYTES, TREE_PAGE_BYTES, ContentAddressableStorage
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

from .cache import Cache


class Client:
    """A client of GetTree that makes its trees too."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.service = ContentAddressableStorage(cache.instances)

    async def directory(self, *files: str, **children: Digest) -> Digest:
        message = re_pb2.Directory(
            files=[re_pb2.FileNode(name=name, digest=Digest.of(b"x").to_proto()) for name in files],
            directories=[re_pb2.DirectoryNode(name=name, digest=d.to_proto()) for name, d in children.items()],
        )
        return (await self.cache.add(message.SerializeToString()))[0]

    async def pages(
        self, root: Digest, page_size: int = 0, token: str = "", identity: Identity | None = None
    ) -> list[re_pb2.GetTreeResponse]:
        request = re_pb2.GetTreeRequest(
            instance_name="main", root_digest=root.to_proto(), page_size=page_size, page_token=token
        )
        context = RequestContext(identity=identity or Identity())
        return [page async for page in self.service.GetTree(request, context)]

    async def tree(self, root: Digest, page_size: int = 0, token: str = "") -> list[Digest]:
        return [
            Digest.of(directory.SerializeToString())
            for page in await self.pages(root, page_size, token)
            for directory in page.directories
        ]


@pytest.fixture
def client(cache: Cache) -> Client:
    return Client(cache)


async def wide(client: Client, count: int) -> list[Digest]:
    """A root and `count` directories in it, in the order of GetTree."""
    below = {f"d{n:04}": await client.directory(f"file{n}") for n in range(count)}
    return [await client.directory(**below), *below.values()]


async def test_a_tree_comes_breadth_first_each_directory_once(client: Client) -> None:
    leaf = await client.directory("leaf")
    left = await client.directory("l", leaf=leaf)
    right = await client.directory("r", leaf=leaf, same=leaf)
    root = await client.directory("file", left=left, right=right, leaf=leaf)
    assert await client.tree(root) == [root, left, right, leaf]


async def test_a_missing_root_is_not_found(client: Client) -> None:
    with pytest.raises(BlobNotFound):
        await client.pages(Digest.of(b"never stored"))


async def test_missing_directories_are_left_out(client: Client) -> None:
    there = await client.directory("there")
    root = await client.directory(a=Digest.of(b"lost"), b=there, c=Digest.of(b"gone"))
    assert await client.tree(root) == [root, there]


async def test_39_the_empty_directory_is_a_tree(client: Client) -> None:
    empty = EMPTY[Digest.of(b"").function]
    assert await client.tree(empty) == [empty]
    root = await client.directory(e=empty)
    assert await client.tree(root) == [root, empty]


@pytest.mark.parametrize("page_size", [1, 2, 3, 6, 7, 2**31 - 1])
async def test_pages_hold_as_many_as_asked_and_only_the_last_has_no_token(client: Client, page_size: int) -> None:
    expected = await wide(client, 5)
    pages = await client.pages(expected[0], page_size)
    assert await client.tree(expected[0], page_size) == expected
    assert all(len(page.directories) == min(page_size, 6) for page in pages[:-1])
    assert [bool(page.next_page_token) for page in pages] == [True] * (len(pages) - 1) + [False]


async def test_any_page_token_goes_on_where_its_page_ended(client: Client) -> None:
    expected = await wide(client, 5)
    delivered = 0
    for page in await client.pages(expected[0], 2):
        delivered += len(page.directories)
        if page.next_page_token:
            assert await client.tree(expected[0], 2, page.next_page_token) == expected[delivered:]
    assert delivered == 6


async def test_large_trees_come_in_messages_far_below_4_mib(client: Client) -> None:
    below = {f"d{n}": await client.directory(*[f"{n}-{m:0200}" for m in range(1_000)]) for n in range(12)}
    root = await client.directory(**below)
    pages = await client.pages(root)
    assert len(pages) > 2
    assert max(page.ByteSize() for page in pages) < TREE_PAGE_BYTES + 1_000 < MAX_MESSAGE_BYTES
    assert await client.tree(root) == [root, *below.values()]


@pytest.mark.parametrize(
    "token", ["x", "-1", "0", "01", "+1", "1 ", "1\n", "1_0", "٣", "7", "999999999", "9" * 10, "9" * 5_000, "\0"]
)
async def test_a_token_that_we_did_not_give_out_is_refused(client: Client, token: str) -> None:
    expected = await wide(client, 5)
    with pytest.raises(MalformedRequest, match="page_token"):
        await client.pages(expected[0], 2, token)


async def test_a_negative_page_size_is_refused(client: Client) -> None:
    with pytest.raises(MalformedRequest, match="page_size -1"):
        await client.pages(await client.directory(), -1)


@pytest.mark.parametrize(
    "root", [Digest("", 0), Digest("A" * 64, 1), Digest("a" * 63, 1), Digest("a" * 64, -1)], ids=str
)
async def test_40_a_root_that_is_no_digest_is_refused(client: Client, root: Digest) -> None:
    with pytest.raises(MalformedRequest, match="root_digest"):
        await client.pages(root)


async def test_a_blob_that_is_no_directory_is_refused(client: Client) -> None:
    [blob] = await client.cache.add(b"\xff plain text")
    with pytest.raises(MalformedRequest, match="is not a Directory message"):
        await client.pages(blob)
    with pytest.raises(MalformedRequest, match="is not a Directory message"):
        await client.pages(await client.directory(text=blob))


async def test_a_tree_that_branches_without_end_is_still_small_work(client: Client) -> None:
    """64 directories, each twice in the next: 2 to the 64th paths, 65 different directories."""
    below = await client.directory("f")
    for _ in range(64):
        below = await client.directory(x=below, y=below)
    assert len(await client.tree(below)) == 65


async def test_an_identity_that_may_not_read_is_refused(client: Client) -> None:
    root = await client.directory("f")
    with pytest.raises(NotAllowed):
        await client.pages(root, identity=Identity(may_read=False))
