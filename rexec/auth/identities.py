"""The identities that rights and instances make."""

from __future__ import annotations

from collections.abc import Iterable

from cas.context import Identity
from rexec.auth.rights import EVERY_RIGHT, Right


def identity_of(name: str, rights: Iterable[Right], instances: Iterable[str] | None, tenant: str = "") -> Identity:
    """The identity with these rights in these instances; None: in every one. Without a tenant, the instance counts."""
    held = frozenset(rights)
    if Right.FRONT in held:
        held = frozenset(EVERY_RIGHT)
    return Identity(
        name=name,
        may_read=bool(held),
        may_execute=Right.EXECUTE in held,
        may_update_action_cache=Right.UPDATE_ACTION_CACHE in held,
        may_work=Right.WORK in held,
        may_operate=Right.OPERATE in held,
        may_front=Right.FRONT in held,
        instance_names=None if instances is None else frozenset(instances),
        tenant=tenant,
    )


THE_SERVERS_OWN = identity_of("local", EVERY_RIGHT, None)
"""Who calls through the Unix socket, which only the user who runs the server can open."""
