"""The options of the autoscaler, with the only place of their defaults."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

import msgspec

POOL_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
"""Part of the names of pods (RFC 1123 labels), with room for what makes each of them different."""

LARGEST_POOL: Final = 10_000
MAX_POOLS: Final = 400
"""In one configuration: the scheduler takes no more than 1,000, and container images have some of those."""
MAX_PROPERTIES: Final = 100
"""Of one pool, each value counted; as many patterns, and instances. Of longer lists the scheduler would be told a part."""
MAX_PATTERNS: Final = 2000
"""Of all pools."""
MAX_PROPERTY_CHARACTERS: Final = 4096
"""Of a name with its value: what an action may ask for."""
MAX_PATTERN_CHARACTERS: Final = 255
MAX_VARIABLES: Final = 100
"""In the environment of a pool. Each is an argument of a command line."""
MAX_VARIABLE_CHARACTERS: Final = 8192
"""Of a name with its value."""

MAX_SLOTS: Final = 4096
MAX_CORES: Final = 100_000.0
MAX_BYTES: Final = 1 << 50
"""1 PiB. These three are what the scheduler believes of a worker."""
DAY_SECONDS: Final = 86_400.0
MAX_DRAIN_SECONDS: Final = 7 * DAY_SECONDS
"""The scheduler gives no worker longer to leave."""
MAX_IDLE_SECONDS: Final = 365 * DAY_SECONDS
MAX_PRICE: Final = 1e6
MAX_COST: Final = 1e9
_IMAGE_PROPERTY: Final = "container-image"
"""As in rexec/autoscale/shape.py."""


class PoolKind(StrEnum):
    """Where the workers of a pool run."""

    LOCAL = "local"
    """Processes of this machine."""
    KUBERNETES = "kubernetes"
    """Pods."""


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[[autoscale.pools]]: workers that are alike."""

    name: str
    """Lower-case letters, digits and "-"; part of the names of its workers."""
    kind: PoolKind = PoolKind.KUBERNETES
    """"kubernetes": pods; "local": processes of this machine."""
    properties: dict[str, list[str]] = msgspec.field(default_factory=dict)
    """Platform properties that its workers offer beside OSFamily, ISA, Arch and what they find on their machine."""
    container_images: tuple[str, ...] = ()
    """Patterns (* and ?) of container images. An action with the property container-image and a value that fits one gets workers
    in that image, unmodified: rexec is brought into it. Empty: the pool's workers run in `image`, whatever actions say."""
    image: str = ""
    """Container image of the workers, with rexec in it; of a pool with `container_images`: of the init container that
    brings rexec along."""
    pod_template: str = ""
    """File with a PodTemplateSpec (YAML), relative to the configuration, that the pods are made of. Empty: a pod with restricted
    rights of `image`."""
    instance_names: tuple[str, ...] = ()
    """Instances that its workers serve. Empty: all of them."""
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    """Variables that its actions start with, in the place of those of [worker.environment] of the same name; what an action says
    itself has the last word. Needed where compilers lie elsewhere, such as PATH for an image with /usr/local/cargo/bin: an
    image's own variables do not reach actions."""
    slots: int = 1
    """Actions that one worker runs at once."""
    cpu: float = 0.0
    """Cores that a pod asks for. 0: one for each slot."""
    memory_bytes: int = 0
    """Memory that a pod asks for and may use. 0: 2 GiB for each slot, and 512 MiB."""
    disk_bytes: int = 20 << 30
    """Disk that a pod may use for its cache and what actions write."""
    min: int = 0
    """Workers that are kept without any work."""
    max: int = 10
    """The most workers; of a pool with `container_images`: over all images."""
    target_wait_seconds: float = 10.0
    """How long work may wait for want of workers. Smaller: more workers for the same work, sooner done, no dearer unless they
    take long to start."""
    idle_seconds: float = 120.0
    """How long a worker may have nothing to do before it goes."""
    start_seconds: float = 10.0
    """How long a worker takes to come, until that has been seen."""
    start_timeout_seconds: float = 600.0
    """A worker that has not come by then is given up, and another one tried later."""
    drain_seconds: float = 3600.0
    """How long the actions of a worker that is taken away against its will, such as by a node's maintenance, may go on."""
    price_per_hour: float = 0.0
    """Of one worker. The cheapest pool that fits is used first."""
    max_cost_per_day: float = 0.0
    """Once so much was spent since midnight UTC nothing is started until the next, not for `min` either; what runs goes on, and
    `min` of it stay. 0: no limit."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them and the pool."""
        if not POOL_NAME.fullmatch(self.name):
            raise ValueError(
                f"name is {self.name[:80]!r}, expected 1 to 40 lower-case letters, digits and '-', not first or last"
            )
        try:
            self._require_usable()
        except ValueError as error:
            raise ValueError(f"{error} (pool {self.name[:80]})") from error

    def _require_usable(self) -> None:
        _require("target_wait_seconds", self.target_wait_seconds, DAY_SECONDS, least=0.001)
        _require("start_timeout_seconds", self.start_timeout_seconds, DAY_SECONDS, least=1.0)
        _require("start_seconds", self.start_seconds, DAY_SECONDS)
        _require("idle_seconds", self.idle_seconds, MAX_IDLE_SECONDS)
        _require("drain_seconds", self.drain_seconds, MAX_DRAIN_SECONDS)
        _require("cpu", self.cpu, MAX_CORES)
        _require("memory_bytes", self.memory_bytes, MAX_BYTES)
        _require("disk_bytes", self.disk_bytes, MAX_BYTES)
        _require("price_per_hour", self.price_per_hour, MAX_PRICE)
        _require("max_cost_per_day", self.max_cost_per_day, MAX_COST)
        if not 0 <= self.min <= LARGEST_POOL:
            raise ValueError(f"min is {self.min}, expected 0 to {LARGEST_POOL}")
        if not 1 <= self.max <= LARGEST_POOL:
            raise ValueError(f"max is {self.max}, expected 1 to {LARGEST_POOL}")
        if self.max < self.min:
            raise ValueError(f"max is {self.max}, expected at least min, {self.min}")
        if not 1 <= self.slots <= MAX_SLOTS:
            raise ValueError(f"slots is {self.slots}, expected 1 to {MAX_SLOTS}")
        if self.image != self.image.strip() or not self.image.isprintable():
            raise ValueError(
                f"image is {self.image[:80]!r}, expected no space around it and nothing that cannot be printed"
            )
        self._require_properties()
        self._require_environment()
        if self.container_images and self.min:
            raise ValueError(f"min is {self.min}, expected 0: no image is known before an action asks for one")
        if self.container_images and self.kind is PoolKind.LOCAL:
            raise ValueError("container_images is set, expected kind = 'kubernetes': a process has no image")
        if self.price_per_hour == 0 and self.max_cost_per_day > 0:
            raise ValueError("max_cost_per_day is set, expected price_per_hour as well")

    def _require_environment(self) -> None:
        if len(self.environment) > MAX_VARIABLES:
            raise ValueError(f"environment has {len(self.environment)} variables, expected at most {MAX_VARIABLES}")
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value or len(name) + len(value) > MAX_VARIABLE_CHARACTERS:
                raise ValueError(
                    f"environment has {name[:80]!r}, expected a name without '=', no NUL, and at most"
                    f" {MAX_VARIABLE_CHARACTERS} characters with the value"
                )

    def _require_properties(self) -> None:
        # Of the pool of an image that is made of this one the image comes on top.
        names = [name for name in self.properties if not (name == _IMAGE_PROPERTY and self.container_images)]
        pairs = [(name, value) for name in names for value in self.properties[name]]
        for what, number in (
            ("properties", len(pairs)),
            ("container_images", len(self.container_images)),
            ("instance_names", len(self.instance_names)),
        ):
            if number > MAX_PROPERTIES:
                raise ValueError(f"{what} has {number} values, expected at most {MAX_PROPERTIES}")
        for name, value in pairs:
            if not name or len(name) + len(value) > MAX_PROPERTY_CHARACTERS:
                raise ValueError(
                    f"properties has {name[:80]!r} with {len(value)} characters, expected a name, and at most"
                    f" {MAX_PROPERTY_CHARACTERS} characters together"
                )
        for pattern in self.container_images:
            if not 1 <= len(pattern) <= MAX_PATTERN_CHARACTERS:
                raise ValueError(
                    f"container_images has {pattern[:80]!r}, expected patterns of 1 to {MAX_PATTERN_CHARACTERS} characters"
                )


class TenantBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[autoscale.tenants.NAME]: what pools may grow to for one tenant; "*" is each tenant that is not named. What is there anyway
    he may use."""

    max_slots: int = 0
    """Slots for his work, running and waiting. 0: no limit."""
    max_cost_per_day: float = 0.0
    """What his slots may cost since midnight UTC. 0: no limit."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        if self.max_slots < 0:
            raise ValueError(f"max_slots is {self.max_slots}, expected 0 or more")
        _require("max_cost_per_day", self.max_cost_per_day, MAX_COST)


class AutoscaleSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[autoscale]: pools of workers that follow the work."""

    installation: str = "rexec"
    """Pods are labelled with it: autoscalers of different names can share a namespace."""
    server: str = ""
    """Where workers connect, grpc[s]://HOST:PORT. Needed for pods."""
    namespace: str = ""
    """Of the pods. Empty: that of the autoscaler's own pod, else that of the kubeconfig's context."""
    kubeconfig: str = ""
    """Empty: the rights of the autoscaler's own pod if it is one, else $KUBECONFIG or ~/.kube/config."""
    max_workers: int = 0
    """Over all pools. 0: no limit."""
    max_cost_per_day: float = 0.0
    """Over all pools, since midnight UTC. 0: no limit."""
    pools: tuple[PoolSettings, ...] = ()
    tenants: dict[str, TenantBudget] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        names = [pool.name for pool in self.pools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"pools has {twice[0]!r} twice, expected each name once")
        if len(names) > MAX_POOLS:
            raise ValueError(f"{len(names)} pools are configured, expected at most {MAX_POOLS}")
        patterns = sum(len(pool.container_images) for pool in self.pools)
        if patterns > MAX_PATTERNS:
            raise ValueError(f"pools have {patterns} container_images, expected at most {MAX_PATTERNS} together")
        for family in self.pools:
            taken = re.compile(f"{family.name}-[0-9a-f]{{16}}").fullmatch
            hidden = next(filter(taken, names), "") if family.container_images else ""
            if hidden:
                raise ValueError(
                    f"pools has {hidden!r}, expected a name that no image of pool {family.name!r} can have"
                )
            if family.container_images and _IMAGE_PROPERTY in family.properties:
                raise ValueError(
                    f"properties of pool {family.name!r} has {_IMAGE_PROPERTY!r}, expected only container_images"
                )
        if not POOL_NAME.fullmatch(self.installation):
            raise ValueError(f"installation is {self.installation[:80]!r}, expected lower-case letters, digits and '-'")
        if self.max_workers < 0:
            raise ValueError(f"max_workers is {self.max_workers}, expected 0 or more")
        _require("max_cost_per_day", self.max_cost_per_day, MAX_COST)


def _require(name: str, value: float, most: float, *, least: float = 0.0) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} is {value}, expected {least:g} to {most:.0f}")
