"""Which actions are alike: names under which the scheduler learns how long they run and how much memory they take.

The names are made from what clients say (REAPI RequestMetadata, Command), so they are short whatever that is. Two actions with
the same name are treated as alike and no more: a client that lies about it is told a wrong estimate.
"""

from __future__ import annotations

from hashlib import blake2b

from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from rexec.scheduler.command import outputs_of
from rexec.scheduler.platform import Requirement

MAX_NAME_CHARACTERS = 40
"""Of a mnemonic or a program; Bazel's longest mnemonics have about 30."""


def class_of(requirement: Requirement, command: re_pb2.Command, metadata: re_pb2.RequestMetadata) -> str:
    """The mnemonic, or the name of the program if the client sends none, and a hash of the platform asked for: the same
    compiler takes twice as long on a slower one."""
    name = metadata.action_mnemonic or command.arguments[0].rpartition("/")[2]
    readable = "".join(c if c.isprintable() and c != "/" else "_" for c in name[:MAX_NAME_CHARACTERS])
    platform = "\0".join(f"{key}={value}" for key, value in sorted(requirement.pairs))
    return f"{readable}/{_hashed(requirement.instance_name, platform, digits=8)}"


def key_of(action_class: str, command: re_pb2.Command, metadata: re_pb2.RequestMetadata) -> str:
    """The same step of the same build, recognised by its target and its first output; empty if it has neither.

    Both, because one Bazel target has many actions, and other clients name no target.
    """
    output = next(iter(outputs_of(command)), "")
    if not (metadata.target_id or output):
        return ""
    return _hashed(action_class, metadata.target_id, command.working_directory, output, digits=32)


def _hashed(*parts: str, digits: int) -> str:
    """Lengths are hashed too: no two lists of parts look the same."""
    said = blake2b(digest_size=digits // 2)
    for part in parts:
        encoded = part.encode(errors="surrogatepass")
        said.update(len(encoded).to_bytes(4, "little") + encoded)
    return said.hexdigest()
