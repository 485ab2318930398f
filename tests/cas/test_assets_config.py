"""The [assets] section: nothing is fetched unless it says so, and what cannot work is named."""

from __future__ import annotations

from typing import Any

import pytest

from cas.assets_config import AssetSettings


def test_nothing_is_fetched_and_no_private_network_is_reached_by_default() -> None:
    settings = AssetSettings()
    assert not settings.fetch
    assert settings.networks() == []


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"max_entries": 0}, "max_entries is 0"),
        ({"max_bytes": 0}, "max_bytes is 0"),
        ({"fetch_max_bytes": -1}, "fetch_max_bytes is -1"),
        ({"max_fetches": 0}, "max_fetches is 0"),
        ({"fetch_seconds": 0.0}, "fetch_seconds is 0"),
        ({"idle_seconds": 1e9}, "idle_seconds is"),
        ({"max_redirects": -1}, "max_redirects is -1"),
        ({"max_redirects": 101}, "max_redirects is 101"),
        ({"allowed_urls": ("host.test",)}, "allowed_urls: 'host.test'"),
        ({"private_networks": ("10.0.0.1/8",)}, "private_networks: 10.0.0.1/8"),
        ({"private_networks": ("home",)}, "private_networks: 'home'"),
    ],
)
def test_what_cannot_work_is_named(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        AssetSettings(**fields)
