"""Instance names: which store and which action cache a request's instance_name stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cas.action_cache import ActionCache
from cas.context import ANYONE, Identity
from cas.errors import MalformedRequest, NotAllowed
from cas.store import BlobStore


@dataclass(frozen=True, slots=True)
class Instance:
    """What one instance name gives access to."""

    name: str
    """As clients send it, "" for the one without a name; may hold slashes."""
    store: BlobStore
    """One that checks what it is given (`Verified`): the services pass on what clients send."""
    action_cache: ActionCache


class Instances:
    """The instances of this server, by name."""

    def __init__(self, instances: Iterable[Instance]) -> None:
        self._by_name: dict[str, Instance] = {}
        for instance in instances:
            if instance.name in self._by_name:
                raise ValueError(f"instance {instance.name!r} is configured twice")
            self._by_name[instance.name] = instance

    @property
    def names(self) -> tuple[str, ...]:
        """All names, in the order of the configuration."""
        return tuple(self._by_name)

    def of(self, name: str) -> Instance:
        """The instance of that name, whoever asks. Raises MalformedRequest, which names those that exist."""
        return self._found(name, ANYONE)

    def readable(self, name: str, identity: Identity) -> Instance:
        """The instance of that name for an identity that may read. Raises NotAllowed and MalformedRequest."""
        if not identity.may_read:
            raise NotAllowed("not allowed")
        return self._found(name, identity)

    def executable(self, name: str, identity: Identity) -> Instance:
        """The instance of that name for an identity that may execute. Raises NotAllowed and MalformedRequest."""
        if not identity.may_execute:
            raise NotAllowed("not allowed")
        return self._found(name, identity)

    def _found(self, name: str, identity: Identity) -> Instance:
        """Who may use some instances only learns nothing of the others: not even whether they exist."""
        if not identity.may_use(name):
            raise NotAllowed("not allowed")
        try:
            return self._by_name[name]
        except KeyError:
            known = ", ".join(repr(known) for known in self._by_name if identity.may_use(known))
            raise MalformedRequest(f"unknown instance name {name[:200]!r}; this server has {known}") from None
