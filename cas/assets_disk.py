"""Assets in one SQLite file, or in memory (cas/bounded_table.py): bounded, those asked for longest ago forgotten first.

A push is rare beside the uploads that it needs, so SQLite may move its log into the file itself, in one write of some
hundreds, though that waits for the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, Self

import msgspec

from cas.assets import Asset, AssetNotFound
from cas.bounded_table import BoundedTable, Layout

LAYOUT: Final = Layout(
    holder="the index of assets", entry="asset", table="assets", key=("key BLOB",), value="asset", version=1
)  # fmt: skip


class DiskAssets:
    """Bounded Assets in the file `path`, or in memory without one. Use it as a context manager.

    The file belongs to one process: whoever opens it holds the lock of the state directory. `clock` gives seconds since
    1970. Entering raises DirectoryUnusable if the file cannot be made.
    """

    def __init__(
        self, path: Path | None, *, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._table = BoundedTable(path, LAYOUT, max_entries=max_entries, max_bytes=max_bytes)
        self._clock = clock

    def __len__(self) -> int:
        return self._table.entries

    def __enter__(self) -> Self:
        self._table.open()
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()

    async def get(self, key: bytes) -> Asset:
        """See Assets. Raises Unavailable if the file cannot be read."""
        now = self._clock()
        try:
            encoded, _ = self._table.get((key,), now)
        except KeyError:
            raise AssetNotFound("no such asset") from None
        asset = _decode(encoded)
        if asset is None or (asset.expires_at is not None and asset.expires_at <= now):
            self._table.forget((key,))
            raise AssetNotFound("the asset has expired" if asset else "no such asset")
        return asset

    async def put(self, keys: Iterable[bytes], asset: Asset) -> None:
        """See Assets. Raises StoreFull if the asset cannot fit, Unavailable if the file cannot be written."""
        self._table.put([(key,) for key in dict.fromkeys(keys)], msgspec.msgpack.encode(asset), self._clock())


def _decode(encoded: bytes) -> Asset | None:
    try:
        return msgspec.msgpack.decode(encoded, type=Asset)
    except (msgspec.DecodeError, TypeError):
        return None
