"""Who may look at an operation, and which instances a worker may serve."""

from __future__ import annotations

import msgspec

from cas.context import Identity
from cas.errors import NotAllowed
from rexec.scheduler.platform import Offer
from rexec.scheduler.scheduler import Scheduler


async def require_operation(scheduler: Scheduler, name: str, identity: Identity) -> None:
    """Raises NotAllowed for an operation of an instance that the identity may not use, or if it may not execute at all.

    Also for one who waits for what others started: who joins is asked like everyone else. Raises OperationNotFound.
    """
    if not identity.may_execute:
        raise NotAllowed("not allowed")
    if identity.instance_names is None:
        return
    state = await scheduler.state(name)
    if not identity.may_use(state.instance_name):
        raise NotAllowed("not allowed")


def allowed_offer(offer: Offer, identity: Identity) -> Offer:
    """The offer of a worker of this identity; one that serves all instances is held to those of the identity.

    Raises NotAllowed if the identity may not work, or not for all instances that the worker names.
    """
    if not identity.may_work:
        raise NotAllowed("not allowed")
    allowed = identity.instance_names
    if allowed is None:
        return offer
    if not allowed or not offer.instance_names <= allowed:
        raise NotAllowed("not allowed")
    return msgspec.structs.replace(offer, instance_names=offer.instance_names or allowed)
