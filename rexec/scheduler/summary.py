"""What clients and workers say, short enough to be shown: whatever they send, a display has room for so much of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import record_pb2
from rexec.scheduler.command import outputs_of
from rexec.scheduler.scheduler import Run
from rexec.scheduler.task import Candidate, Owner

MAX_CHARACTERS = 300

MAX_PROPERTIES = 30
"""Of a platform; real ones have five."""


def shortened(text: str, characters: int = MAX_CHARACTERS) -> str:
    """The text, or its beginning with a mark."""
    return text if len(text) <= characters else text[: characters - 1] + "…"


def summary_of(candidate: Candidate) -> str:
    """What an action is about: mnemonic and target (REAPI RequestMetadata), or its first output, or the program. Empty for one
    that has ended: its command is forgotten."""
    run = candidate.payload
    if not isinstance(run, Run):
        return ""
    metadata = run.request_metadata
    what = metadata.target_id or next(iter(outputs_of(run.command)), "")
    if not (what or metadata.action_mnemonic):
        what = next(iter(run.command.arguments), "")
    return shortened(f"{shortened(metadata.action_mnemonic, 60)} {shortened(what)}".strip())


def owner_to_proto(owner: Owner) -> record_pb2.Owner:
    """Whose work it is."""
    return record_pb2.Owner(
        tenant=shortened(owner.tenant), user=shortened(owner.user), invocation=shortened(owner.invocation)
    )


def properties_of(pairs: Iterable[tuple[str, str]]) -> Iterator[re_pb2.Platform.Property]:
    """Platform properties, in order."""
    for name, value in islice(sorted(pairs), MAX_PROPERTIES):
        yield re_pb2.Platform.Property(name=shortened(name, 100), value=shortened(value))
