"""What to paste into each client so that it uses this server."""

from __future__ import annotations

from collections.abc import Sequence

_WILDCARDS = ("0.0.0.0", "[::]")  # recognised, not listened on


def client_flags(address: str, instance_names: Sequence[str], executes: bool, hostname: str) -> str:
    """The settings of Bazel, recc, BuildStream and Buck2 for the server at `address` ("HOST:PORT").

    `executes` is False for a server that has no scheduler part. Clients on other machines need a name instead of a
    wildcard address; `hostname` is this machine's.
    """
    host, _, port = address.rpartition(":")
    where = f"{hostname if host in _WILDCARDS else host}:{port}"
    name = "" if "" in instance_names else instance_names[0]
    bazel = f"--remote_{'executor' if executes else 'cache'}=grpc://{where}"
    sections = [
        ("Bazel", [f"bazel build {bazel}{f' --remote_instance_name={name}' if name else ''} //..."]),
        (
            "recc",
            [f"export RECC_SERVER=http://{where} RECC_INSTANCE={name}", "recc /usr/bin/g++ -c hello.cpp -o hello.o"],
        ),
        ("BuildStream (buildstream.conf)", _buildstream(where, name)),
        ("Buck2 (.buckconfig)", _buck2(where, name)),
    ]
    if not executes:
        sections = [sections[0], sections[3]]
    return "\n".join(line for title, lines in sections for line in (title, *(f"    {line}" for line in lines)))


def _buildstream(where: str, name: str) -> list[str]:
    instance = [f"    instance-name: {name}"] if name else []
    lines = ["remote-execution:"]
    for service in ("execution-service", "storage-service", "action-cache-service"):
        lines += [f"  {service}:", f"    url: http://{where}", *instance]
    return lines


def _buck2(where: str, name: str) -> list[str]:
    keys = ("engine_address", "action_cache_address", "cas_address")
    return [
        "[buck2_re_client]",
        *(f"{key} = grpc://{where}" for key in keys),
        "tls = false",
        *([f"instance_name = {name}"] if name else []),
    ]
