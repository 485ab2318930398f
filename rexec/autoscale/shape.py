"""The pools that there are: those of the configuration, and for each container image that is asked for one of its own.

Pools with `container_images` have no workers themselves. Each image that work waits for, or a worker was started for, makes a
pool below them: POOL-xxxxxxxxxxxxxxxx, with the image among its properties, both with and without "docker://": actions write it
either way.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from rexec.autoscale.settings import PoolKind, PoolSettings
from rexec.autoscale.view import Offer, Pairs

IMAGE_PROPERTY: Final = "container-image"
"""The platform property that names the image an action wants to run in."""
IMAGE_SCHEME: Final = "docker://"
"""What its value may begin with; patterns are of what follows."""

MAX_IMAGES: Final = 500
"""Pools for images at once; the rest of the images waits. Whoever may run actions chooses them."""

ASSUMED: Final[dict[str, tuple[str, ...]]] = {
    "OSFamily": ("Linux", "linux"),
    "ISA": ("x86-64",),
    "Arch": ("amd64", "x86_64"),
}
"""What a worker finds out about its machine (rexec/worker/machine.py) if that is Linux on x86-64; configured values replace
these, as they do there."""

_IMAGE: Final = re.compile(r"[A-Za-z0-9\[](?:[A-Za-z0-9_\[\]:@+-]|\.(?!\.)|/(?!/)){0,599}")
"""What may be the name of an image, with registry, tag and digest; longer ones there are none (OCI distribution)."""

_NAME_DIGITS: Final = 16
"""Of the hash of an image in the name of its pool. So many that nobody finds an image whose pool has the name of another's, and
as many as there is room for in the names of pods."""

_POD_RESERVE_BYTES: Final = 512 << 20
"""What a worker keeps from actions of its container's memory, never more than half of it ([worker] memory_reserve_bytes)."""
_SLOT_BYTES: Final = 2 << 30


class Shape(msgspec.Struct, frozen=True):
    """A pool whose workers are all alike."""

    name: str
    settings: PoolSettings
    """Its entry of the configuration. Of an image's pool: of the pool above, with the image among the properties."""
    image: str = ""
    """Without "docker://"."""

    @property
    def family(self) -> str:
        """The name of its entry, which its machines carry."""
        return self.settings.name

    def offer(self, learned: Offer | None) -> Offer:
        """What one of its workers has, as far as it is known."""
        pairs = configured_pairs(self.settings)
        cpu_millis, memory_bytes = configured_resources(self.settings)
        if learned is not None:
            # Of what is configured nothing is learned: what a worker says beside that the next one will not have, and in an image
            # of a user it is his programs that run beside the worker.
            pairs |= {pair for pair in learned.pairs if pair[0] not in self.settings.properties}
            cpu_millis, memory_bytes = learned.cpu_millis, learned.memory_bytes
        names = {name for name, _value in pairs}
        pairs |= {(name, value) for name, values in ASSUMED.items() if name not in names for value in values}
        return Offer(pairs, frozenset(self.settings.instance_names), self.settings.slots, cpu_millis, memory_bytes)


def configured_pairs(settings: PoolSettings) -> Pairs:
    """The properties of its entry."""
    return frozenset((name, value) for name, values in settings.properties.items() for value in values)


def configured_resources(settings: PoolSettings) -> tuple[int, int]:
    """Thousandths of cores and bytes of memory that the actions of one worker share; 0: not known."""
    cpu_millis, memory_bytes = round(settings.cpu * 1000), settings.memory_bytes
    if settings.kind is PoolKind.LOCAL:
        return cpu_millis, memory_bytes
    memory_bytes = memory_bytes or settings.slots * _SLOT_BYTES + _POD_RESERVE_BYTES
    return cpu_millis or settings.slots * 1000, memory_bytes - min(_POD_RESERVE_BYTES, memory_bytes // 2)


def image_pool(family: PoolSettings, image: str) -> Shape:
    """The pool for an image below `family`, however it is written."""
    image = image.removeprefix(IMAGE_SCHEME)
    name = f"{family.name}-{hashlib.sha256(image.encode()).hexdigest()[:_NAME_DIGITS]}"
    properties = {**family.properties, IMAGE_PROPERTY: [image, f"{IMAGE_SCHEME}{image}"]}
    return Shape(name, msgspec.structs.replace(family, properties=properties), image)


def allows(family: PoolSettings, image: str) -> bool:
    """Whether one of its patterns fits the image, and no container runtime would refuse its name."""
    bare = image.removeprefix(IMAGE_SCHEME)
    return _IMAGE.fullmatch(bare) is not None and any(
        fnmatchcase(bare, pattern) or fnmatchcase(image, pattern) for pattern in family.container_images
    )


def shapes(
    families: Sequence[PoolSettings], started: Iterable[tuple[str, str]], asked: Iterable[str]
) -> dict[str, Shape]:  # fmt: skip
    """All pools by name. `started`: family and image of each machine; `asked`: images that work waits for, first ones first."""
    by_name = {family.name: family for family in families}
    found = [Shape(family.name, family) for family in families if not family.container_images]
    images: dict[str, Shape] = {}
    for name, image in started:
        if image and name in by_name and by_name[name].container_images:
            shape = image_pool(by_name[name], image)
            images[shape.name] = shape
    for image in dict.fromkeys(asked):
        for family in families:
            if len(images) < MAX_IMAGES and allows(family, image):
                shape = image_pool(family, image)
                images[shape.name] = shape
    return {shape.name: shape for shape in [*found, *images.values()]}


def shape_name(families: Sequence[PoolSettings], pool: str, image: str) -> str:
    """The pool that a machine belongs to, given what it carries; "" if the configuration has it no more."""
    family = next((family for family in families if family.name == pool), None)
    if family is None or bool(family.container_images) is not bool(image):
        return ""
    return image_pool(family, image).name if image else pool
