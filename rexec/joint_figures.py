"""What several processes count, as one page of metrics: every figure with a label that says whose it is.

The processes are asked when somebody asks us, over their own HTTP ports on this machine. One that does not answer is left
out and counted as down: a number that may be wrong is not shown.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from rexec.kept_process import KeptProcess

ANSWER_SECONDS: Final = 1.5
"""How long a process may take: its own HTTP port takes up to 1 s to say that its event loop is stuck."""
MAX_PAGE_BYTES: Final = 16 << 20


class JointFigures(Collector):
    """A collector over `parts`; `registry` holds nothing else."""

    def __init__(self, parts: Sequence[KeptProcess]) -> None:
        self._parts = parts
        self.registry = CollectorRegistry()
        # Not by `register`, which would ask for the names that there are, before anybody runs.
        self.registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """No names in advance."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Every metric of every process, in a thread that may wait for them."""
        parts = list(self._parts)
        with ThreadPoolExecutor(len(parts), "figures") as threads:
            pages = list(threads.map(_page_of, parts))
        up = GaugeMetricFamily(
            "rexec_process_up", "Whether a process of this server shows its figures.", labels=["process"]
        )
        joint: dict[str, Metric] = {}
        for part, page in zip(parts, pages, strict=True):
            up.add_metric([part.name], float(page is not None))
            for metric in text_string_to_metric_families(page or ""):
                known = joint.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                for sample in metric.samples:
                    known.samples.append(sample._replace(labels={"process": part.name, **sample.labels}))
        return [up, *joint.values()]


def _page_of(part: KeptProcess) -> str | None:
    port = (part.told or {}).get("metrics_port")
    if not port:
        return None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ANSWER_SECONDS) as answer:
            return bytes(answer.read(MAX_PAGE_BYTES)).decode()
    except (OSError, UnicodeDecodeError):
        return None
