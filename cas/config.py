"""The options of the stores, their defaults and their checks; sizes as people write them.

Data only: what is built from it is decided in cas/stores.py.
"""

from __future__ import annotations

import re
from typing import Final, Literal

import msgspec

from cas.connection_settings import ConnectionSettings
from cas.objects_config import ObjectSettings

SYNC_SECONDS: Final = 30.0
DEFAULT_MAX_BYTES: Final = 20 << 30

_UNITS: Final = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGTP", start=1):
    _UNITS[f"{_letter}iB"] = _UNITS[_letter] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power

_SIZE: Final = re.compile(r"\s*([0-9]{1,19})(?:\.([0-9]{1,6}))?\s*([A-Za-z]{0,3})\s*", re.ASCII)


def parse_bytes(value: int | str) -> int:
    """A size in bytes from a number or from text such as "20GiB", "1.5 TB" or "500M" (K, M, G, T, P alone are binary).

    Raises ValueError for anything else, and for sizes below one byte.
    """
    size_bytes = value if isinstance(value, int) else 0
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[3] not in _UNITS:
            raise ValueError(f"size {value!r} is not a number of bytes such as 20GiB, 1.5TB or 1048576")
        fraction = match[2] or ""
        size_bytes = int(match[1] + fraction) * _UNITS[match[3]] // 10 ** len(fraction)
    if size_bytes < 1:
        raise ValueError(f"size {value!r} is not a size of at least one byte")
    return size_bytes


def default_max_bytes(free_bytes: int, held_bytes: int) -> int:
    """The bound of a disk store that was given none: DEFAULT_MAX_BYTES, but at most half of what the disk could give.

    That is the free room and what the store holds already, or the bound would shrink with every start.
    """
    return max(1, min(DEFAULT_MAX_BYTES, (free_bytes + held_bytes) // 2))


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The [store] section: where blobs and action results are kept, and how many."""

    kind: Literal["disk", "memory", "remote", "objects", "sharded"] = "disk"
    """"memory" forgets everything when the server stops; "remote" keeps everything at another REAPI server, "sharded" at several,
    "objects" in an object store. `rexec frontend` keeps nothing: with "disk" and "memory" it uses the scheduler's store."""

    address: str = ""
    """grpc://HOST:PORT, or grpcs:// with TLS, of the server that a "remote" store is. It has to know the same instance names."""

    shards: tuple[str, ...] = ()
    """The addresses of the servers that a "sharded" store is spread over, in any order. Each blob belongs to `replicas` of them,
    whichever they are by its hash; a server that is added or removed moves its own share only."""

    replicas: int = 1
    """Servers that keep each blob of a "sharded" store. With 2 one of them may be away."""

    objects: ObjectSettings = ObjectSettings()

    connection: ConnectionSettings | None = None
    """How this program shows that server, or those servers, who it is. Unset: as [connection] says."""

    directory: str = ""
    """Holds cas/ and action-cache.sqlite3 of a disk store, and the cache before an object store; a leading ~ is the user's home.
    One server at a time uses it. Empty: the state directory of the server."""

    memory_bytes: int = 64 << 20
    """Small blobs that passed by lately, kept in memory by a server whose store is another one."""

    max_bytes: int | None = None
    """Bound of all blobs. Without it, 20 GiB but at most half of the room that the disk has for the store (1 GiB for kind
    "memory"): a cache that fills a developer's disk unasked is switched off for good."""

    max_blob_bytes: int = 0
    """The largest blob that clients may write (REAPI CacheCapabilities.max_cas_blob_size_bytes). 0: any that fits."""

    sync_seconds: float = SYNC_SECONDS
    """Seconds between syncs of the file system while blobs arrive. What was written since is dropped after a crash of the
    whole machine; a crash of the server alone loses nothing."""

    action_cache_max_entries: int = 1_000_000
    """Action results kept at most."""

    action_cache_max_bytes: int = 1 << 30
    """Bound of all action results together; most have 1 to 10 kB."""

    def __post_init__(self) -> None:
        if self.address and self.kind != "remote":
            raise ValueError(f'address is {self.address!r}, which only a store of kind "remote" has')
        if self.kind == "objects" and not self.objects.bucket:
            raise ValueError('kind is "objects"; expected store.objects.bucket as well')
        if self.shards and self.kind != "sharded":
            raise ValueError(f'shards are set, which only a store of kind "sharded" has; kind is {self.kind!r}')
        if self.kind == "sharded" and not self.shards:
            raise ValueError('kind is "sharded"; expected shards as well')
        if len(set(self.shards)) < len(self.shards):
            raise ValueError("shards names a server twice; expected different ones")
        if self.kind == "sharded" and not 1 <= self.replicas <= len(self.shards):
            raise ValueError(f"replicas is {self.replicas}; expected 1 to the number of shards, {len(self.shards)}")
        if self.kind != "sharded" and self.replicas != 1:
            raise ValueError(f'replicas is {self.replicas}; only a store of kind "sharded" has more than 1')
        if self.max_bytes is not None and self.max_bytes < 1:
            raise ValueError(f"max_bytes is {self.max_bytes}; expected at least 1")
        if self.memory_bytes < 1:
            raise ValueError(f"memory_bytes is {self.memory_bytes}; expected at least 1")
        if self.max_blob_bytes < 0:
            raise ValueError(f"max_blob_bytes is {self.max_blob_bytes}; expected 0 or more")
        if self.action_cache_max_bytes < 1:
            raise ValueError(f"action_cache_max_bytes is {self.action_cache_max_bytes}; expected at least 1")
        if not 0 < self.sync_seconds <= 86400:
            raise ValueError(f"sync_seconds is {self.sync_seconds}; expected more than 0 and at most 86400")
        if self.action_cache_max_entries < 1:
            raise ValueError(f"action_cache_max_entries is {self.action_cache_max_entries}; expected at least 1")

    @property
    def elsewhere(self) -> str:
        """Where the blobs are, for people; empty if they are in this program's own directory or memory."""
        match self.kind:
            case "remote":
                return self.address
            case "objects":
                return self.objects.bucket
            case "sharded":
                return ", ".join(self.shards)
            case _:
                return ""
