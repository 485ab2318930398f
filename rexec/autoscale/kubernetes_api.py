"""The Kubernetes API by path, with the credentials that `kubernetes.aio` knows how to find, renew and show.

Bodies are plain JSON and not that library's thousand classes: what a newer cluster or a template says survives unread, and a pod
costs microseconds. What the server refuses is ApiRefusal; anything that keeps a request from being answered is Unreachable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from cas.extras import how_to_install
from rexec.autoscale.kubernetes_messages import Status, plain

REQUEST_SECONDS: Final = 15.0
"""For a request to be answered as a whole."""

CONNECT_SECONDS: Final = 5.0

MAX_ANSWER_BYTES: Final = 64 << 20
"""A page of pods is far smaller."""

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_MAX_TEXT: Final = 600
_MERGE_PATCH: Final = "application/merge-patch+json"


class KubernetesUnusable(Exception):
    """No cluster can be talked to as configured; the text says why."""


class Unreachable(Exception):
    """A request was not answered, so nobody knows whether it was carried out. The text says why."""


class ApiRefusal(Exception):
    """An answer other than 2xx."""

    def __init__(self, code: int, status: Status, retry_after_seconds: float | None = None) -> None:
        """`status` is the body: its `reason` is for programs, its `message` for people."""
        super().__init__(plain(status.message) or f"HTTP status {code}")
        self.code = code
        self.reason = status.reason
        self.retry_after_seconds = retry_after_seconds


class KubernetesApi:
    """One API server, and who we are to it."""

    def __init__(self, client: Any, namespace: str) -> None:
        """`client` is kubernetes.aio's ApiClient."""
        self._client = client
        self.namespace = namespace
        """Where pods are, unless the configuration says otherwise."""

    @property
    def address(self) -> str:
        """Host and port, for people."""
        return urlsplit(str(self._client.configuration.host)).netloc

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        """The body. Raises ApiRefusal and Unreachable, as all of these do."""
        return await self._request("GET", path, query)

    async def post(self, path: str, body: Any) -> bytes:
        return await self._request("POST", path, body=body)

    async def put(self, path: str, body: Any) -> bytes:
        return await self._request("PUT", path, body=body)

    async def patch(self, path: str, body: Any) -> bytes:
        """A merge patch (RFC 7396)."""
        return await self._request("PATCH", path, body=body, content_type=_MERGE_PATCH)

    async def delete(self, path: str, body: Any) -> bytes:
        """`body` is a DeleteOptions."""
        return await self._request("DELETE", path, body=body)

    @asynccontextmanager
    async def lines(
        self, path: str, query: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of an answer that goes on, such as a watch. Raises ApiRefusal and Unreachable, the latter also when
        nothing has come for so long."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds)
        with _answered(self.address):
            response = await self._open("GET", path, query, timeout=timeout)
            try:
                if response.status >= 300:
                    raise _refusal(response, await _body(response))
                yield self._each(response)
            finally:
                # Not released: the rest of a watch would have to be read first.
                response.close()

    async def _each(self, response: Any) -> AsyncIterator[bytes]:
        with _answered(self.address):
            while line := await response.content.readline():
                yield line

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
    ) -> bytes:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, sock_connect=CONNECT_SECONDS)
        with _answered(self.address):
            response = await self._open(method, path, query, body, content_type, timeout)
            try:
                data = await _body(response)
            finally:
                response.release()
        if response.status >= 300:
            raise _refusal(response, data)
        return data

    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: Any = None,
    ) -> Any:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        prepared = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        verb, url, shown, content, _ = prepared
        answer = await self._client.call_api(verb, url, shown, content, _request_timeout=timeout)
        return answer.response


@asynccontextmanager
async def open_api(kubeconfig: str = "", namespace: str = "") -> AsyncIterator[KubernetesApi]:
    """The cluster of the file, or of the pod that this process is, or of $KUBECONFIG. Raises KubernetesUnusable."""
    try:
        # It takes half a second, and only those who have pods need it.
        import yaml
        from kubernetes.aio import client, config
    except ImportError as missing:
        raise KubernetesUnusable(
            f"{missing.name} is not installed, expected the extra 'kubernetes': {how_to_install('kubernetes')}"
        ) from missing
    configuration = client.Configuration()
    renewal: asyncio.Task[None] | None = None
    where = "the service account of this pod"
    try:
        if not kubeconfig and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            found = _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.exists() else ""
        else:
            where = file = _file_of(kubeconfig)
            loader = await config.load_kube_config(
                config_file=file, client_configuration=configuration, persist_config=False
            )
            current: Any = config.list_kube_config_contexts(file)[1]
            found = str(current["context"].get("namespace") or "")
            renewal = asyncio.create_task(config.refresh_token(loader, configuration))
        opened = client.ApiClient(configuration)
    except (config.ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        # The library says no more of a file that is YAML but no kubeconfig than what its code ran into.
        raise KubernetesUnusable(f"cannot use {where}: {plain(str(error))}") from error
    opened.user_agent = "rexec-autoscaler"
    try:
        yield KubernetesApi(opened, namespace or found or "default")
    finally:
        if renewal is not None:
            renewal.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await renewal
        await opened.close()


def _file_of(kubeconfig: str) -> str:
    # Several files, joined by colons, are kubectl's to merge; here the first one counts.
    named = os.environ.get("KUBECONFIG", "").split(":")[0]
    file = os.path.expanduser(kubeconfig or named or "~/.kube/config")
    if not os.path.exists(file):
        raise KubernetesUnusable(f"there is no kubeconfig {file}, and this process runs in no pod")
    return file


@contextlib.contextmanager
def _answered(address: str) -> Any:
    """Whatever keeps an answer away, as Unreachable."""
    import aiohttp
    from kubernetes.aio.config import ConfigException

    try:
        yield
    except TimeoutError as error:
        raise Unreachable(f"the API server at {address} does not answer in time") from error
    except (aiohttp.ClientError, OSError, ValueError, ConfigException) as error:
        raise Unreachable(
            f"cannot reach the API server at {address}: {plain(str(error)) or type(error).__name__}"
        ) from error


async def _body(response: Any) -> bytes:
    pieces = []
    length = 0
    async for piece in response.content.iter_chunked(1 << 20):
        length += len(piece)
        if length > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is larger than {MAX_ANSWER_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)


def _refusal(response: Any, body: bytes) -> ApiRefusal:
    try:
        status = msgspec.json.decode(body, type=Status)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # A proxy before the server, or a webhook, says it in its own words.
        status = Status(message=body[:_MAX_TEXT].decode(errors="replace"))
    return ApiRefusal(int(response.status), status, _retry_after(response.headers.get("Retry-After"), status))


def _retry_after(header: str | None, status: Status) -> float | None:
    """Of the header (RFC 9110, in seconds; a date is not read) or the Status."""
    if header is not None and header.isascii() and header.isdigit():
        return min(float(header), 3600.0)
    seconds = status.details.retry_after_seconds if status.details is not None else 0
    return min(float(seconds), 3600.0) if seconds > 0 else None
