"""Which instances a worker may serve."""

from __future__ import annotations

import pytest

from cas.context import ANYONE, Identity
from cas.errors import NotAllowed
from rexec.scheduler.permission import allowed_offer
from rexec.scheduler.platform import Offer

PAIRS = frozenset({("OSFamily", "linux")})


def limited(*names: str) -> Identity:
    return Identity("w", instance_names=frozenset(names))


def offering(*names: str) -> Offer:
    return Offer(PAIRS, frozenset(names))


@pytest.mark.parametrize(
    ("identity", "offer", "served"),
    [
        (ANYONE, offering(), offering()),
        (ANYONE, offering("a"), offering("a")),
        (limited("a", "b"), offering(), offering("a", "b")),
        (limited("a", "b"), offering("b"), offering("b")),
        (limited(""), offering(), offering("")),
    ],
)
def test_a_worker_serves_no_more_than_it_may(identity: Identity, offer: Offer, served: Offer) -> None:
    assert allowed_offer(offer, identity) == served


@pytest.mark.parametrize(
    ("identity", "offer"),
    [
        (Identity("w", may_work=False), offering()),
        (limited("a"), offering("b")),
        (limited("a"), offering("a", "b")),
        (limited(), offering()),
    ],
)
def test_a_worker_that_wants_more_is_refused(identity: Identity, offer: Offer) -> None:
    with pytest.raises(NotAllowed):
        allowed_offer(offer, identity)
