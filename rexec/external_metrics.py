"""The external metrics API (external.metrics.k8s.io/v1beta1): what a HorizontalPodAutoscaler asks for, answered by the scheduler.

The API server of a cluster passes requests on to whoever an APIService names. This module decides what each of them gets, as
values; rexec/external_metrics_port.py carries it. Figures come from the service that KEDA asks as well (rexec/keda.py), so both
autoscalers see the same.

    GET /apis/external.metrics.k8s.io/v1beta1/namespaces/NS/rexec_wanted_workers?labelSelector=pool%3Dlinux

Every namespace has the same figures. The labels of a selector say which workers are asked about (rexec/asked_pool.py).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs, unquote

from cas.errors import MalformedRequest
from rexec.asked_pool import asked_pool
from rexec.keda import FIGURES

GROUP: Final = "external.metrics.k8s.io"
VERSION: Final = "v1beta1"
GROUP_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "ExternalMetricValueList"

LARGEST: Final = 9e15
"""Values are read in thousandths, as 64-bit numbers."""

_REASONS: Final = {
    400: "BadRequest",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    500: "InternalError",
    503: "ServiceUnavailable",
}
"""metav1.StatusReason."""

_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_EQUALS: Final = re.compile(r"\s*([^\s=!()]+)\s*==?\s*([^\s=!()]*)\s*")
_IN: Final = re.compile(r"\s*([^\s=!()]+)\s+in\s*\(\s*([^\s=!()]*)\s*\)\s*")

Ask = Callable[[str, Mapping[str, str]], Awaitable[float]]
"""The figure of a metric for the workers that these texts describe. Raises MalformedRequest, and Unanswered."""


class Unanswered(Exception):
    """The scheduler does not say; the text says why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP status and a JSON object, or a word for a probe."""

    status: int
    body: dict[str, Any] | str


def failure(code: int, message: str) -> Answer:
    """A Status object (metav1.Status)."""
    return Answer(
        code,
        {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": _REASONS[code],
            "code": code,
        },
    )


def is_probe(path: str) -> bool:
    """Whether the kubelet may ask for it, who shows no certificate."""
    return path in ("/healthz", "/livez", "/readyz")


async def answer(method: str, target: str, ask: Ask, now: datetime) -> Answer:
    """What a request gets. `now`: with a time zone."""
    path, _, query = target.partition("?")
    path = path.rstrip("/") or "/"
    if method not in ("GET", "HEAD"):
        return failure(405, f"method {method[:20]} is not allowed, expected GET")
    if is_probe(path):
        return Answer(200, "ok\n")
    if path in _DISCOVERY:
        return Answer(200, _DISCOVERY[path])
    parts = [unquote(part) for part in path.removeprefix(f"/apis/{GROUP_VERSION}/").split("/")]
    if not path.startswith(f"/apis/{GROUP_VERSION}/") or len(parts) != 3 or parts[0] != "namespaces":
        return failure(404, f"nothing at {path[:200]}")
    _, namespace, metric = parts
    if not _NAMESPACE.fullmatch(namespace):
        return failure(404, f"no namespace is named {namespace[:100]!r}")
    if metric not in FIGURES:
        return failure(404, f"no metric is named {metric[:100]!r}, expected {', '.join(FIGURES)}")
    try:
        labels = selected(query)
        asked_pool(labels)
        value = await ask(metric, labels)
    except MalformedRequest as error:
        return failure(400, str(error))
    except Unanswered as error:
        return failure(503, str(error))
    item = {
        "metricName": metric,
        "metricLabels": labels,
        "timestamp": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "value": quantity(value),
    }
    return Answer(200, {"kind": KIND, "apiVersion": GROUP_VERSION, "metadata": {}, "items": [item]})


def selected(query: str) -> dict[str, str]:
    """The labels that the query's labelSelector asks for. Raises MalformedRequest for anything but equality."""
    try:
        texts = parse_qs(query, max_num_fields=20).get("labelSelector", [])
    except ValueError:
        raise MalformedRequest("the query has too many parts") from None
    if len(texts) > 1:
        raise MalformedRequest(f"{len(texts)} times labelSelector, expected one")
    labels: dict[str, str] = {}
    for part in texts[0].split(",") if texts and texts[0].strip() else ():
        found = _EQUALS.fullmatch(part) or _IN.fullmatch(part)
        if found is None:
            raise MalformedRequest(
                f"labelSelector has {part.strip()[:100]!r}, expected NAME=VALUE: a pool is one set of workers"
            )
        name, value = found.groups()
        if labels.setdefault(name, value) != value:
            raise MalformedRequest(f"labelSelector asks for two values of {name[:100]!r}")
    return labels


def quantity(value: float) -> str:
    """A number as Kubernetes writes it (resource.Quantity), to the thousandth."""
    value = min(max(0.0, value), LARGEST)
    thousandths = round(value * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


_SERVED: Final = {"groupVersion": GROUP_VERSION, "version": VERSION}
_OWN_GROUP: Final = {"name": GROUP, "versions": [_SERVED], "preferredVersion": _SERVED}
_DISCOVERY: Final[dict[str, dict[str, Any]]] = {
    "/apis": {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_OWN_GROUP]},
    f"/apis/{GROUP}": {"kind": "APIGroup", "apiVersion": "v1", **_OWN_GROUP},
    f"/apis/{GROUP_VERSION}": {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": GROUP_VERSION,
        "resources": [
            {"name": name, "singularName": "", "namespaced": True, "kind": KIND, "verbs": ["get"]} for name in FIGURES
        ],
    },
}
