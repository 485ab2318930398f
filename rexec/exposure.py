"""What a server gives away to those who reach its ports, said once at its start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rexec.address import host_and_port, is_loopback
from rexec.auth.rights import EVERY_RIGHT, Right
from rexec.config import Config

FRONTEND_POWERS = {Right.EXECUTE: "run commands here", Right.WORK: "attach workers"}
"""What can be done at the port of a server for clients."""

SCHEDULER_POWERS = {Right.FRONT: "run commands on the workers", Right.WORK: "attach workers"}
"""What can be done at the port of a scheduler for frontends and workers."""


def warnings(
    config: Config, addresses: Sequence[str], powers: Mapping[Right, str] = FRONTEND_POWERS
) -> list[str]:  # fmt: skip
    """One line for each risk that other machines are; none for a server that only this machine reaches."""
    if all(is_loopback(host_and_port(address)[0]) for address in addresses):
        return []
    tls, auth = config.server.tls, config.auth
    found = []
    # The right to be a frontend includes the others.
    rights = EVERY_RIGHT if Right.FRONT in auth.anonymous_rights else auth.anonymous_rights
    can = [words for right, words in powers.items() if right in rights]
    if can and not tls.client_ca:
        found.append(f"other machines reach this port, and whoever does may {' and '.join(can)}: see [auth]")
    elif Right.UPDATE_ACTION_CACHE in rights and not tls.client_ca:
        found.append(
            "other machines reach this port, and whoever does may put results into the action cache: see [auth]"
        )
    if not tls.enabled:
        what = "tokens, sources and results" if auth.knows_identities else "sources and results"
        found.append(f"{what} travel unencrypted: see [server.tls]")
    return found
