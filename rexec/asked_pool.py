"""The workers that an autoscaler of the cluster's asks about, as the texts that it sends along say.

KEDA sends the metadata of a trigger, a HorizontalPodAutoscaler the labels of a selector; both have the same keys:

    pool                NAME: short for the property Pool=NAME
    property.NAME       a platform property that the workers offer
    properties          several of them, NAME=VALUE,NAME=VALUE (not in a selector, whose values have no "=")
    instance            the instance that they serve; without it they serve all
    slotsPerWorker      without it what the workers have that were there last, else 1
    targetWaitSeconds   how long work may wait for want of workers
    startSeconds        how long a worker takes to come

Other keys are refused, since one that is misspelt would scale by something else; those that KEDA reads itself are passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cas.errors import MalformedRequest
from rexec.autoscale.settings import PoolKind, PoolSettings
from rexec.autoscale.view import Pairs

POOL_PROPERTY: Final = "Pool"
PROPERTY: Final = "property."
KEYS: Final = ("pool", "property.NAME", "properties", "instance", "slotsPerWorker", "targetWaitSeconds", "startSeconds")

OF_KEDA: Final = frozenset(
    {
        "scalerAddress",
        "enableTLS",
        "unsafeSsl",
        "tlsCertFile",
        "caCert",
        "tlsClientCert",
        "tlsClientKey",
        "metricType",
    }
)  # fmt: skip
"""Keys of a trigger that KEDA reads itself, and sends along with the others."""

MAX_CHARACTERS: Final = 8192
"""Of all keys and values together."""
MAX_PROPERTIES: Final = 100
MAX_SLOTS: Final = 4096
MAX_SECONDS: Final = 86_400.0

NAME: Final = "asked"
"""Of the pool, to the policy."""
_DEFAULTS: Final = PoolSettings(name=NAME)
_LARGEST: Final = 10_000
"""Workers: whoever asks has a limit of his own."""


class AskedPool(msgspec.Struct, frozen=True):
    """Workers that are alike, and how soon they should do what waits."""

    pairs: Pairs = frozenset()
    """They all offer these, and others."""
    instance: str | None = None
    slots: int = 0
    """Of one worker; 0: not known."""
    target_wait_seconds: float = _DEFAULTS.target_wait_seconds
    start_seconds: float = _DEFAULTS.start_seconds

    def settings(self, slots: int) -> PoolSettings:
        """The same as the policy's loop would have it, with workers of so many slots."""
        properties: dict[str, list[str]] = {}
        for name, value in sorted(self.pairs):
            properties.setdefault(name, []).append(value)
        return PoolSettings(
            name=NAME,
            kind=PoolKind.LOCAL,  # nothing is assumed of their cores and their memory
            properties=properties,
            instance_names=() if self.instance is None else (self.instance,),
            slots=slots,
            max=_LARGEST,
            target_wait_seconds=self.target_wait_seconds,
            start_seconds=self.start_seconds,
        )


def asked_pool(said: Mapping[str, str]) -> AskedPool:
    """What the texts ask about. Raises MalformedRequest that names the key."""
    size = sum(len(key) + len(value) for key, value in said.items())
    if size > MAX_CHARACTERS:
        raise MalformedRequest(f"metadata of {size} characters, expected at most {MAX_CHARACTERS}")
    for key in said:
        if key not in KEYS and key not in OF_KEDA and not key.startswith(PROPERTY):
            raise MalformedRequest(f"{key[:100]!r} is not known here, expected {', '.join(KEYS)}")
    pairs = frozenset(_pairs(said))
    if len(pairs) > MAX_PROPERTIES:
        raise MalformedRequest(f"properties has {len(pairs)}, expected at most {MAX_PROPERTIES}")
    return AskedPool(
        pairs,
        said.get("instance"),
        _slots(said["slotsPerWorker"]) if "slotsPerWorker" in said else 0,
        _seconds("targetWaitSeconds", said.get("targetWaitSeconds"), _DEFAULTS.target_wait_seconds, above=True),
        _seconds("startSeconds", said.get("startSeconds"), _DEFAULTS.start_seconds),
    )


def _pairs(said: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    if "pool" in said:
        if not said["pool"]:
            raise MalformedRequest("pool is empty, expected the value of the property Pool")
        yield POOL_PROPERTY, said["pool"]
    for key, value in said.items():
        if key.startswith(PROPERTY):
            if key == PROPERTY:
                raise MalformedRequest(f"{key!r} names no property, expected {PROPERTY}NAME")
            yield key.removeprefix(PROPERTY), value
    for part in said.get("properties", "").split(","):
        name, separator, value = part.strip().partition("=")
        if name and separator:
            yield name, value
        elif part.strip():
            raise MalformedRequest(f"properties has {part.strip()[:100]!r}, expected NAME=VALUE,NAME=VALUE")


def _slots(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_SLOTS):
        raise MalformedRequest(f"slotsPerWorker is {text[:100]!r}, expected 1 to {MAX_SLOTS}")
    return int(text)


def _seconds(key: str, text: str | None, otherwise: float, *, above: bool = False) -> float:
    if text is None:
        return otherwise
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (0 <= seconds <= MAX_SECONDS) or (above and seconds == 0):
        expected = "more than 0 and " if above else "0 or more and "
        raise MalformedRequest(f"{key} is {text[:100]!r}, expected seconds, {expected}at most {MAX_SECONDS:g}")
    return seconds
