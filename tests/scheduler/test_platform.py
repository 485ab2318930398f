"""Whether what an action requires and what a worker offers meet."""

from __future__ import annotations

import pytest

from rexec.scheduler.platform import Offer, Requirement, unmatched

SANDBOX = Offer(frozenset({("unixUID", "*"), ("network", "off"), ("network", "on"), ("OSFamily", "linux")}))


@pytest.mark.parametrize(
    ("pairs", "fits"),
    [
        ((), True),
        ((("OSFamily", "linux"),), True),
        ((("unixUID", "0"), ("network", "on")), True),
        ((("unixUID", "1"), ("unixUID", "2")), True),  # for the worker to refuse
        ((("unixUID", "*"),), True),
        ((("unixGID", "0"),), False),
        ((("network", "*"),), False),
        ((("OSFamily", "*"),), False),
        ((("unixUID", "0"), ("OSFamily", "windows")), False),
    ],
)
def test_a_name_offered_with_a_star_takes_every_value(pairs: tuple[tuple[str, str], ...], fits: bool) -> None:
    assert SANDBOX.fits(Requirement("", frozenset(pairs))) is fits


def test_the_reason_names_the_property_that_has_no_such_value() -> None:
    requirement = Requirement("", frozenset({("unixUID", "0"), ("network", "fast")}))
    assert unmatched(requirement, [(SANDBOX, 1)]).startswith("no worker offers network=fast (")
