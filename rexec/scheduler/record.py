"""What is remembered of the workers of one name that did not do well."""

from __future__ import annotations

from dataclasses import dataclass, field

from cas.digest import Digest
from rexec.scheduler.task import Standing


@dataclass(slots=True)
class Record:
    """What went wrong on the workers of one name since the last action that ended by itself."""

    incidents: list[tuple[frozenset[Digest], str]] = field(default_factory=list)
    """The actions and the reason of each."""
    standing: Standing = Standing.TRUSTED
    seconds: float = 0.0
    """How long the present quarantine lasts."""
    until: float = 0.0
    evidence: str = ""
    """Why the workers are not trusted, for people."""
