"""Assets: which blob or directory a URI with qualifiers stands for, as it was pushed or fetched.

An asset is found by exactly the qualifiers that it was pushed with, in any order. Only the hash of a key is kept, so that
what a client put into a URL or a qualifier is never found in a file. The content itself is in the store, and may be gone
from there: `Presence` tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

import msgspec

from cas.digest import Digest
from cas.errors import MalformedRequest, NotFound
from cas.fetch_qualifiers import CHECKSUM, is_secret
from cas.store import BlobStore
from cas.tree import MAX_ENTRIES, DirectoryCache, load_tree


class Kind(StrEnum):
    """What an asset is. A blob and a directory may have the same URI; they are two assets."""

    BLOB = "blob"
    DIRECTORY = "directory"


class Asset(msgspec.Struct, frozen=True, array_like=True):
    """What a key stands for. Times are seconds since 1970."""

    digest: Digest
    """The blob, or the root Directory."""
    made_at: float
    """When it was pushed, or when its fetch began (Remote Asset, FetchBlobRequest.oldest_content_accepted)."""
    expires_at: float | None = None
    """From then on it is not found (PushBlobRequest.expire_at)."""
    blobs: tuple[Digest, ...] = ()
    """Blobs that it refers to (PushBlobRequest.references_blobs)."""
    directories: tuple[Digest, ...] = ()
    """Directories that it refers to."""


class AssetNotFound(NotFound):
    """Nobody pushed such an asset, it has expired, or part of its content is gone."""


class Assets(Protocol):
    """Assets by key. May forget any of them at will."""

    async def get(self, key: bytes) -> Asset:
        """Raises AssetNotFound, also for one that has expired."""
        ...

    async def put(self, keys: Iterable[bytes], asset: Asset) -> None:
        """Remember the asset under each of the keys, in place of what was there. Raises StoreFull."""
        ...


def asset_key(instance_name: str, kind: Kind, uri: str, qualifiers: Mapping[str, str]) -> bytes:
    """The key of an asset: 32 bytes.

    Headers are part of it unless a checksum is: what one may see and another may not are two assets, but whoever names
    the content's own hash gets it, as anyone gets blobs by their digest.
    """
    named = {name: value for name, value in qualifiers.items() if not (CHECKSUM in qualifiers and is_secret(name))}
    return hashlib.sha256(msgspec.json.encode([instance_name, kind, uri, sorted(named.items())])).digest()


class Presence:
    """Tells whether the content of assets is in a store, and makes it count as used there."""

    def __init__(self, max_blobs: int = MAX_ENTRIES, max_cache_bytes: int = 16 << 20) -> None:
        """`max_blobs` bounds what one asset may make the server look for, each time that somebody asks for it."""
        self._max_blobs = max_blobs
        self._directories = DirectoryCache(max_cache_bytes)

    async def missing(self, asset: Asset, kind: Kind, store: BlobStore) -> set[Digest]:
        """All blobs of the asset and of what it refers to that the store does not have.

        Raises MalformedRequest for a directory that is none, or one of a tree too large.
        """
        roots = [*asset.directories, *([asset.digest] if kind is Kind.DIRECTORY else [])]
        wanted = {asset.digest, *asset.blobs}
        for root in dict.fromkeys(roots):
            wanted |= (await load_tree(store, root, self._directories)).blobs()
            if len(wanted) > self._max_blobs:
                raise MalformedRequest(f"the asset {asset.digest} refers to more than {self._max_blobs} blobs")
        return await store.find_missing(wanted)

    async def held(self, digests: Sequence[Digest], kind: Kind, store: BlobStore) -> tuple[Digest, ...]:
        """Those of `digests` that the store has, directories with all that is in them; what is no directory it has not."""
        if kind is Kind.BLOB:
            missing = await store.find_missing(digests) if digests else ()
            return tuple(digest for digest in dict.fromkeys(digests) if digest not in missing)
        held = []
        for digest in dict.fromkeys(digests):
            try:
                if not await self.missing(Asset(digest, 0.0), kind, store):
                    held.append(digest)
            except MalformedRequest:
                continue
        return tuple(held)

    async def require(self, asset: Asset, kind: Kind, store: BlobStore) -> None:
        """Raises AssetNotFound unless all of it is there."""
        try:
            missing = await self.missing(asset, kind, store)
        except MalformedRequest as wrong:
            raise AssetNotFound(f"the asset refers to what is no directory: {wrong}") from None
        if missing:
            raise AssetNotFound(f"{len(missing)} blobs of the asset are gone, {next(iter(missing))} among them")
