"""The rights that configuration and tokens speak of."""

from __future__ import annotations

from enum import StrEnum


class Right(StrEnum):
    """What an identity may do. Each of the others includes READ: none is of use without it. FRONT includes them all."""

    READ = "read"
    """Read blobs and action results; write blobs."""
    EXECUTE = "execute"
    """Execute, and see and cancel operations. The results of what ran go to the action cache."""
    UPDATE_ACTION_CACHE = "update_action_cache"
    """Write action results that the server has not seen being made."""
    WORK = "work"
    """Attach as a worker: see what it runs, and say what came out of it."""
    OPERATE = "operate"
    """Take workers out of service; of an identity that may use some instances only, the workers that serve no others."""
    FRONT = "front"
    """Be a frontend: ask the scheduler in the name of any client or worker, whose rights the frontend has checked."""


EVERY_RIGHT = tuple(Right)
