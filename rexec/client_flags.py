"""What to paste into each client so that it uses this server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_WILDCARDS = ("0.0.0.0", "[::]")  # recognised, not listened on


@dataclass(frozen=True, slots=True)
class Access:
    """What the server asks of its clients."""

    tls: bool = False
    certificate: bool = False
    """Clients have to show a certificate."""
    token: bool = False
    """Bearer tokens count."""

    @property
    def grpc(self) -> str:
        """The scheme of clients that say grpc."""
        return "grpcs" if self.tls else "grpc"

    @property
    def http(self) -> str:
        """The scheme of clients that say http."""
        return "https" if self.tls else "http"


OPEN = Access()


def client_flags(
    address: str, instance_names: Sequence[str], executes: bool, hostname: str, access: Access = OPEN
) -> str:
    """The settings of Bazel, recc, BuildStream and Buck2 for the server at `address` ("HOST:PORT").

    `executes` is False for a server that has no scheduler part. Clients on other machines need a name instead of a
    wildcard address; `hostname` is this machine's. Words in capitals are for the reader to fill in.
    """
    where = reachable(address, hostname)
    name = "" if "" in instance_names else instance_names[0]
    sections = [("Bazel", _bazel(where, name, executes, access))]
    if executes:
        sections.append(("recc", _recc(where, name, access)))
        sections.append(("BuildStream (buildstream.conf)", _buildstream(where, name, access)))
    sections.append(("Buck2 (.buckconfig)", _buck2(where, name, access)))
    if access.tls:
        sections.append(("CA.pem", ["the authority of this server's certificate, where clients do not know it anyway"]))
    return "\n".join(line for title, lines in sections for line in (title, *(f"    {line}" for line in lines)))


def reachable(address: str, hostname: str) -> str:
    """The address with a name in the place of a wildcard."""
    host, _, port = address.rpartition(":")
    return f"{hostname if host in _WILDCARDS else host}:{port}"


def worker_flags(where: str, access: Access) -> str:
    """The command line of a worker for the server there."""
    return f"rexec worker --server {access.grpc}://{where}{_connection_flags(access)}"


def frontend_flags(where: str, access: Access) -> str:
    """The command line of a frontend for the scheduler there."""
    return f"rexec frontend --scheduler {access.grpc}://{where}{_connection_flags(access)}"


def _connection_flags(access: Access) -> str:
    command = " --tls-ca CA.pem" if access.tls else ""
    command += " --tls-certificate CLIENT.pem --tls-key CLIENT.key" if access.certificate else ""
    return command + (" --token-file TOKEN-FILE" if access.token else "")


def _bazel(where: str, name: str, executes: bool, access: Access) -> list[str]:
    flags = [f"--remote_{'executor' if executes else 'cache'}={access.grpc}://{where}"]
    flags += [f"--remote_instance_name={name}"] if name else []
    flags += ["--tls_certificate=CA.pem"] if access.tls else []
    flags += ["--tls_client_certificate=CLIENT.pem", "--tls_client_key=CLIENT.key"] if access.certificate else []
    flags += ["'--remote_header=authorization=Bearer TOKEN'"] if access.token else []
    return [f"bazel build {' '.join(flags)} //..."]


def _recc(where: str, name: str, access: Access) -> list[str]:
    lines = [f"export RECC_SERVER={access.http}://{where} RECC_INSTANCE={name}"]
    lines += ["export GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=CA.pem"] if access.tls else []
    lines += ["export RECC_ACCESS_TOKEN_PATH=TOKEN-FILE"] if access.token else []
    return [*lines, "recc /usr/bin/g++ -c hello.cpp -o hello.o"]


def _buildstream(where: str, name: str, access: Access) -> list[str]:
    instance = [f"    instance-name: {name}"] if name else []
    auth = ["      server-cert: CA.pem"] if access.tls else []
    auth += ["      client-cert: CLIENT.pem", "      client-key: CLIENT.key"] if access.certificate else []
    auth += ["      access-token: TOKEN-FILE"] if access.token else []
    auth = ["    auth:", *auth] if auth else []
    lines = ["remote-execution:"]
    for service in ("execution-service", "storage-service", "action-cache-service"):
        lines += [f"  {service}:", f"    url: {access.http}://{where}", *instance, *auth]
    return lines


def _buck2(where: str, name: str, access: Access) -> list[str]:
    keys = ("engine_address", "action_cache_address", "cas_address")
    return [
        "[buck2_re_client]",
        *(f"{key} = {access.grpc}://{where}" for key in keys),
        f"tls = {str(access.tls).lower()}",
        *(["tls_ca_certs = CA.pem"] if access.tls else []),
        *(["tls_client_cert = CLIENT-WITH-KEY.pem"] if access.certificate else []),
        *(["http_headers = Authorization: Bearer $TOKEN"] if access.token else []),
        *([f"instance_name = {name}"] if name else []),
    ]
