"""Builds Remote Asset from the [assets] section: what is remembered, and what fetches from outside if that is switched on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from cas.assets import Presence
from cas.assets_config import AssetSettings
from cas.assets_disk import DiskAssets
from cas.extras import how_to_install
from cas.fetch import Fetcher
from cas.fetch_address import Guard
from cas.fetch_origins import Origins, OutsideOrigins
from cas.instances import Instances
from cas.services.asset import FetchService, PushService


class FetchUnusable(Exception):
    """Fetching is switched on and cannot work; the text says what to do."""


@asynccontextmanager
async def open_assets(
    settings: AssetSettings, instances: Instances, directory: Path | None, spool_directory: Path
) -> AsyncIterator[tuple[FetchService, PushService]]:
    """The two services, with assets remembered in `directory`, or in memory without one.

    Raises DirectoryUnusable, and FetchUnusable if the HTTP client is not installed.
    """
    path = directory / "assets.sqlite3" if directory is not None else None
    async with AsyncExitStack() as stack:
        assets = stack.enter_context(DiskAssets(path, max_entries=settings.max_entries, max_bytes=settings.max_bytes))
        origins: Origins | None = None
        if settings.fetch:
            origins = await stack.enter_async_context(_outside(settings, spool_directory))
        presence = Presence()
        yield FetchService(instances, assets, presence, origins), PushService(instances, assets, presence)


@asynccontextmanager
async def _outside(settings: AssetSettings, spool_directory: Path) -> AsyncIterator[Origins]:
    try:
        from cas.fetch_http import HttpSource  # most servers fetch nothing: they need not have its library
    except ModuleNotFoundError as error:
        raise FetchUnusable(f"[assets] fetch needs the package {error.name}: {how_to_install('fetch')}") from error
    source = HttpSource(settings, Guard(settings.networks()))
    async with Fetcher(settings, source, spool_directory) as fetcher:
        yield OutsideOrigins(fetcher)
