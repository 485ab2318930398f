"""The rights that configuration and tokens speak of, and the identities that they make."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from cas.context import Identity


class Right(StrEnum):
    """What an identity may do. Each of the others includes READ: none is of use without it."""

    READ = "read"
    """Read blobs and action results; write blobs."""
    EXECUTE = "execute"
    """Execute, and see and cancel operations. The results of what ran go to the action cache."""
    UPDATE_ACTION_CACHE = "update_action_cache"
    """Write action results that the server has not seen being made."""
    WORK = "work"
    """Attach as a worker: see what it runs, and say what came out of it."""


EVERY_RIGHT = tuple(Right)


def identity_of(name: str, rights: Iterable[Right], instances: Iterable[str] | None) -> Identity:
    """The identity with these rights in these instances; None: in every one."""
    held = frozenset(rights)
    return Identity(
        name=name,
        may_read=bool(held),
        may_execute=Right.EXECUTE in held,
        may_update_action_cache=Right.UPDATE_ACTION_CACHE in held,
        may_work=Right.WORK in held,
        instance_names=None if instances is None else frozenset(instances),
    )


THE_SERVERS_OWN = identity_of("local", EVERY_RIGHT, None)
"""Who calls through the Unix socket, which only the user who runs the server can open."""
