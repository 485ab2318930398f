"""Files of the cache that stay while an action uses them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from cas.digest import Digest
from rexec.worker.blob_files import FileKey
from rexec.worker.bundle import Bundle, CachedFile

if TYPE_CHECKING:
    from rexec.worker.files import FileCache


class Hold:
    """Files that stay while this is open; a context manager."""

    def __init__(self, cache: FileCache, bundles: Iterable[Bundle]) -> None:
        self._cache = cache
        self.bundles: Mapping[Digest | None, Bundle] = {bundle.name: bundle for bundle in bundles}
        """By the directory whose files they are. The same object means the same files, also for later holds."""
        self.touched: set[FileKey] = set()
        """Those of the files that were changed while they were held."""
        self.spoilt: set[CachedFile] = set()
        """Those that others held as well then."""
        self._is_released = False

    def __enter__(self) -> Hold:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.release()

    def among(self, files: Mapping[FileKey, CachedFile]) -> set[FileKey]:
        """Which of the files it holds."""
        keys = frozenset(files)
        return {
            key
            for bundle in self.bundles.values()
            if not keys.isdisjoint(bundle.keys)
            for key in keys & bundle.keys
            if bundle.files[key] is files[key]
        }

    def look(self) -> None:
        """Find which of the files were changed: before the action begins, from when on they are watched, and when it has ended.
        Blocks; `forget` draws the conclusions."""
        self._cache.guard.look(self.bundles.values())

    def forget(self, changed: Iterable[FileKey] = ()) -> int:
        """Drop all files that were found changed, and `changed` of these. Returns how many files of this hold have been
        changed, now or before, while another hold had them too: of each, somebody may have read what it does not stand for."""
        self._cache.forget_changed()
        wanted = frozenset(changed)
        if wanted:
            self._cache.forget_files(
                [bundle.files[key] for bundle in self.bundles.values() for key in wanted & bundle.keys]
            )
        return len(self.spoilt)

    def release(self) -> None:
        """Let the files go; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._cache.released(self)
