"""`rexec external-metrics`: the figures of a server for the HorizontalPodAutoscalers of a Kubernetes cluster."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rexec.address import channel_target, host_and_port, is_loopback
from rexec.command_line import CONFIG, LEVEL, configured, run
from rexec.config import Config
from rexec.tls_settings import TlsSettings

if TYPE_CHECKING:
    from grpc import aio

LISTENS: Final = "127.0.0.1:8443"

CALL_SECONDS: Final = 4.0
"""For each server: an API server waits longer than for two of them."""

_RECONNECTS: Final = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 2000))
"""A server that is back is found by the next question."""


class CannotAnswer(Exception):
    """The port cannot be opened; the text says why."""


@click.command("external-metrics")
@click.option(
    "--server",
    "servers",
    required=True,
    metavar="ADDR[,ADDR]",
    help="grpc[s]://HOST:PORT of a frontend or the scheduler, and of others to ask if that does not answer.",
)
@click.option("--listen", default=LISTENS, metavar="HOST:PORT", help=f"Where HTTPS is answered. [default: {LISTENS}]")
@click.option("--serving-certificate", required=True, metavar="FILE", help="PEM file of this port's certificate.")
@click.option("--serving-key", required=True, metavar="FILE", help="PEM file of its private key.")
@click.option(
    "--front-proxy-ca",
    metavar="FILE",
    help="PEM file of the authority of the API server's front proxy. Given: nobody else is answered. [default: everybody is]",
)
@click.option(
    "--front-proxy-name",
    "front_proxy_names",
    multiple=True,
    metavar="NAME",
    help="Common name of the front proxy's certificate; may be repeated. [default: any that the authority has signed]",
)
@click.option("--tls-ca", metavar="FILE", help="Authorities to trust for grpcs://. [default: the public ones]")
@click.option("--tls-certificate", metavar="FILE", help="Certificate to show the server, if it wants one.")
@click.option("--tls-key", metavar="FILE", help="Private key of that certificate.")
@click.option("--token-file", metavar="FILE", help="File with the bearer token to show the server.")
@click.option("--config", type=CONFIG, metavar="FILE", help="TOML file; [connection] and [server] log_level count.")
@click.option("--log-level", type=LEVEL, help="[default: info]")
def external_metrics(
    servers: str,
    listen: str,
    serving_certificate: str,
    serving_key: str,
    front_proxy_ca: str | None,
    front_proxy_names: tuple[str, ...],
    tls_ca: str | None,
    tls_certificate: str | None,
    tls_key: str | None,
    token_file: str | None,
    config: Path | None,
    log_level: str | None,
) -> None:
    """Tell a cluster's HorizontalPodAutoscalers how many workers are wanted.

    Serves external.metrics.k8s.io/v1beta1 for an APIService of the cluster; docs/kubernetes-autoscalers.md has the
    manifests. `rexec autoscale`, which starts and ends workers itself, needs none of this.
    """
    addresses = tuple(part.strip() for part in servers.split(","))
    for address in addresses:
        try:
            channel_target(address)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--server") from error
    try:
        host, _port = host_and_port(listen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--listen") from error
    if front_proxy_names and not front_proxy_ca:
        raise click.UsageError("--front-proxy-name is given, expected --front-proxy-ca as well")
    settings = configured(
        config,
        connection__tls_ca=tls_ca,
        connection__tls_certificate=tls_certificate,
        connection__tls_key=tls_key,
        connection__token_file=token_file,
        server__log_level=log_level,
    )
    from rexec import logs

    logs.configure(settings.server)
    tls = TlsSettings(certificate=serving_certificate, key=serving_key, client_ca=front_proxy_ca or "")

    def ready(port: int) -> None:
        click.echo(f"rexec answers for external.metrics.k8s.io at https://{host}:{port}, as {servers} says")
        if not front_proxy_ca and not is_loopback(host):
            click.echo("  warning: whoever reaches this port reads the figures: see --front-proxy-ca")
        sys.stdout.flush()

    async def answer() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with answering(addresses, settings, listen, tls, front_proxy_names) as port:
            ready(port)
            await stop.wait()

    try:
        run(answer)
    except CannotAnswer as error:
        raise click.ClickException(str(error)) from error


@asynccontextmanager
async def answering(
    servers: Sequence[str], config: Config, listen: str, tls: TlsSettings, front_proxy_names: Sequence[str] = ()
) -> AsyncIterator[int]:
    """Answer at https://LISTEN meanwhile; gives the port. Raises CannotAnswer."""
    from rexec.auth.credentials import AuthUnusable
    from rexec.connection import CannotConnect
    from rexec.external_metrics_port import MetricsPort

    async with AsyncExitStack() as stack:
        try:
            source = _Schedulers(servers, config)
            stack.push_async_callback(source.close)
            port = await stack.enter_async_context(MetricsPort(tls, front_proxy_names, source.ask).listening(listen))
        except (AuthUnusable, CannotConnect, OSError, ValueError) as error:
            raise CannotAnswer(str(error)) from error
        yield port


class _Schedulers:
    """Servers that say the same; the one that answered last is asked first."""

    def __init__(self, servers: Sequence[str], config: Config) -> None:
        """Raises CannotConnect and ValueError."""
        from rexec.connection import headers, open_channel

        self._servers: list[tuple[str, aio.Channel, Any]] = []
        for server in servers:
            shown = headers(server, config.connection)
            self._servers.append((server, open_channel(server, config.connection, _RECONNECTS), shown))

    async def ask(self, metric: str, labels: Mapping[str, str]) -> float:
        """See rexec.external_metrics.Ask."""
        import grpc

        from cas.errors import MalformedRequest
        from protos.keda import externalscaler_pb2 as keda_pb2
        from protos.methods import methods_of
        from rexec.external_metrics import Unanswered

        method = methods_of(keda_pb2, "ExternalScaler")["GetMetrics"]
        request = keda_pb2.GetMetricsRequest(
            scaledObjectRef=keda_pb2.ScaledObjectRef(scalerMetadata=labels), metricName=metric
        )
        said = ""
        for entry in list(self._servers):
            server, channel, shown = entry
            call: Any = channel.unary_unary(
                method.path, method.request_type.SerializeToString, method.response_type.FromString
            )
            try:
                answer = await call(request, timeout=CALL_SECONDS, metadata=tuple(shown))
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise MalformedRequest(error.details() or "") from error
                said = f"{server} does not say: {error.code().name}: {error.details()}"
                continue
            except (OSError, ValueError) as error:  # the token's file
                said = f"{server} is not asked: {error}"
                continue
            self._servers.remove(entry)
            self._servers.insert(0, entry)
            return float(answer.metricValues[0].metricValueFloat)
        raise Unanswered(said)

    async def close(self) -> None:
        """Give the connections up."""
        for _server, channel, _shown in self._servers:
            await channel.close()
