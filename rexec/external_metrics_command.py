"""`rexec external-metrics`: the figures of a server for the autoscalers of a Kubernetes cluster."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from rexec.address import host_and_port, is_loopback
from rexec.command_line import CONFIG, LEVEL, addresses_in, configured, connecting, run
from rexec.config import Config
from rexec.tls_settings import TlsSettings

LISTENS: Final = "127.0.0.1:8443"

MAX_CALLS: Final = 200
"""Of KEDA's at once, streams included."""


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
@click.option("--serving-certificate", metavar="FILE", help="PEM file of that port's certificate. [default: no HTTPS]")
@click.option("--serving-key", metavar="FILE", help="PEM file of its private key.")
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
@click.option(
    "--keda-listen",
    metavar="HOST:PORT",
    help="Answer KEDA's questions there, without TLS and whoever asks. [default: nowhere]",
)
@connecting
@click.option("--config", type=CONFIG, metavar="FILE", help="TOML file; [connection] and [server] log_level count.")
@click.option("--log-level", type=LEVEL, help="[default: info]")
def external_metrics(
    servers: str,
    listen: str,
    serving_certificate: str | None,
    serving_key: str | None,
    front_proxy_ca: str | None,
    front_proxy_names: tuple[str, ...],
    keda_listen: str | None,
    config: Path | None,
    log_level: str | None,
    **connection: str | None,
) -> None:
    """Tell the autoscalers of a Kubernetes cluster how many workers are wanted.

    Serves external.metrics.k8s.io/v1beta1 for HorizontalPodAutoscalers, behind an APIService of the cluster, and KEDA if its
    triggers cannot ask the server themselves for want of a token. docs/kubernetes-autoscalers.md has the manifests. `rexec
    autoscale`, which starts and ends workers itself, needs none of this.
    """
    addresses = addresses_in(servers, "--server")
    for option, where in (("--listen", listen), ("--keda-listen", keda_listen or LISTENS)):
        try:
            host_and_port(where)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=option) from error
    if bool(serving_certificate) is not bool(serving_key):
        raise click.UsageError("expected both --serving-certificate and --serving-key, or neither")
    if not serving_certificate and not keda_listen:
        raise click.UsageError("expected --serving-certificate and --serving-key, or --keda-listen, or all of them")
    if front_proxy_ca and not serving_certificate:
        raise click.UsageError("--front-proxy-ca is given, expected --serving-certificate as well")
    if front_proxy_names and not front_proxy_ca:
        raise click.UsageError("--front-proxy-name is given, expected --front-proxy-ca as well")
    settings = configured(
        config,
        server__log_level=log_level,
        **connection,
    )
    from rexec import logs

    logs.configure(settings.server)
    tls = TlsSettings(
        certificate=serving_certificate or "", key=serving_key or "", client_ca=front_proxy_ca or ""
    )  # fmt: skip

    def ready(ports: Ports) -> None:
        click.echo(f"rexec tells the figures of {servers}")
        if ports.https:
            host = host_and_port(listen)[0]
            click.echo(f"  for external.metrics.k8s.io at https://{host}:{ports.https}")
            if not front_proxy_ca and not is_loopback(host):
                click.echo("  warning: whoever reaches this port reads the figures: see --front-proxy-ca")
        if keda_listen:
            click.echo(f"  for KEDA at {host_and_port(keda_listen)[0]}:{ports.keda}")
        sys.stdout.flush()

    async def answer() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        async with answering(addresses, settings, listen, tls, front_proxy_names, keda_listen or "") as ports:
            ready(ports)
            await stop.wait()

    try:
        run(answer)
    except CannotAnswer as error:
        raise click.ClickException(str(error)) from error


@dataclass(frozen=True, slots=True)
class Ports:
    """Where it answers; 0: not at all."""

    https: int = 0
    keda: int = 0


@asynccontextmanager
async def answering(
    servers: Sequence[str],
    config: Config,
    listen: str,
    tls: TlsSettings,
    front_proxy_names: Sequence[str] = (),
    keda_listen: str = "",
) -> AsyncIterator[Ports]:
    """Answer at https://LISTEN meanwhile, if `tls` has a certificate, and KEDA if it is said where. Raises CannotAnswer."""
    from protos.keda import externalscaler_pb2
    from rexec.asked_schedulers import AskedSchedulers, PassedOn
    from rexec.auth.credentials import AuthUnusable
    from rexec.connection import CannotConnect
    from rexec.external_metrics_port import MetricsPort
    from rexec.rpc import RpcServer

    https = keda = 0
    async with AsyncExitStack() as stack:
        try:
            source = AskedSchedulers(servers, config.connection)
            stack.push_async_callback(source.close)
            if tls.enabled:
                port = MetricsPort(tls, front_proxy_names, source.figure)
                https = await stack.enter_async_context(port.listening(listen))
            if keda_listen:
                server = RpcServer(max_calls=MAX_CALLS)
                server.add(externalscaler_pb2, "ExternalScaler", PassedOn(source))
                keda = server.listen(keda_listen)
                await server.start()
                stack.push_async_callback(server.stop, 0)
        except (AuthUnusable, CannotConnect, OSError, ValueError) as error:
            raise CannotAnswer(str(error)) from error
        yield Ports(https, keda)
