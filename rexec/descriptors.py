"""How many files and connections the process may have open at once.

Many systems start processes with a limit of 1,024 that they may raise themselves. A server would run into it with a few
hundred builds: each connection is a descriptor, each upload of a large blob is one, and each blob that is being read.
"""

from __future__ import annotations

import resource
from typing import Final

import structlog

log = structlog.get_logger()

WANTED: Final = 65_536
"""Enough for 10,000 connections and as many uploads; far above it some programs that the worker starts take seconds to
close what they could have open."""

UPLOADS_SHARE: Final = 4
"""One descriptor in so many may be an unfinished upload's."""


def raised() -> int:
    """Raise the process's own limit as far as it may be, up to WANTED; returns what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= WANTED:
        return WANTED
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as reason:
        log.warning("cannot raise the limit of open files", limit=soft, wanted=wanted, reason=str(reason))
        return soft
    return wanted


def max_uploads(descriptors: int) -> int:
    """The most unfinished uploads of a process that may have so many descriptors open: more than those left would have no
    file to go to, nor would anything else."""
    return max(1, min(10_000, descriptors // UPLOADS_SHARE))
