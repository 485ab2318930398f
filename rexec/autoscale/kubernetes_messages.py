"""What is read of Kubernetes' objects; all else in them is passed over. A field of the wrong type is msgspec.ValidationError."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_MAX_TEXT: Final = 600
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class _Message(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Fields are named as in the API, in camelCase there. An absent one has its default; null is taken for absent where a
    server may say it."""


class StatusDetails(_Message, frozen=True):
    """Of a Status."""

    retry_after_seconds: int = 0


class Status(_Message, frozen=True):
    """What a request came to, unless it came to an object."""

    code: int = 0
    reason: str = ""
    message: str = ""
    details: StatusDetails | None = None


class OwnerReference(_Message, frozen=True):
    """Whose an object is."""

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool | None = None


class Metadata(_Message, frozen=True):
    """Of any object."""

    name: str = ""
    uid: str = ""
    namespace: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None


class ListMetadata(_Message, frozen=True):
    """Of a list."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class Waiting(_Message, frozen=True):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class Terminated(_Message, frozen=True):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class ContainerState(_Message, frozen=True):
    """One of them is set."""

    waiting: Waiting | None = None
    running: dict[str, object] | None = None
    terminated: Terminated | None = None


class ContainerStatus(_Message, frozen=True):
    """One container of a pod."""

    name: str = ""
    state: ContainerState | None = None
    last_state: ContainerState | None = None


class Condition(_Message, frozen=True):
    """Of a pod."""

    type: str = ""
    status: str = ""
    reason: str | None = None
    message: str | None = None


class PodStatus(_Message, frozen=True):
    """What the cluster says of a pod."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    conditions: list[Condition] | None = None
    init_container_statuses: list[ContainerStatus] | None = None
    container_statuses: list[ContainerStatus] | None = None


class Pod(_Message, frozen=True):
    """A pod, as far as it matters here."""

    metadata: Metadata
    status: PodStatus = PodStatus()


class PodList(_Message, frozen=True):
    """A page of pods."""

    metadata: ListMetadata = ListMetadata()
    items: list[Pod] | None = None


class WatchEvent(_Message, frozen=True):
    """A line of a watch."""

    type: str
    object: msgspec.Raw
    """A Pod; of BOOKMARK one with nothing but its resourceVersion; of ERROR a Status."""


def plain(text: str) -> str:
    """A text of the cluster's on one line, shortened, without what a terminal would take for commands."""
    line = _CONTROL.sub(" ", text).strip()
    return line if len(line) <= _MAX_TEXT else f"{line[:_MAX_TEXT]}..."
