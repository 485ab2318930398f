"""The pods of an installation, kept true by a list and then a watch, whatever happens to the API server.

A watch goes on from the resourceVersion of what was heard last. A server that has forgotten that version says 410, and all is
listed again; so it is now and then without need, which heals what a lost event may have left. While nothing is heard the pods
stay as they were: those that run do not need the API server.

A watch ends by itself after half a minute and a new one goes on from there: so a server that has gone silent is found out
soon, which an open connection would not tell.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, Unreachable
from rexec.autoscale.kubernetes_messages import Pod, PodList, Status, WatchEvent

log = structlog.get_logger()

PAGE_PODS: Final = 500
WATCH_SECONDS: Final = 30
SILENCE_SECONDS: Final = 10.0
"""Beyond a watch's end without a word before the connection is given up."""
RELIST_SECONDS: Final = 600.0
SHORTEST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 5.0
_MAX_GONE: Final = 10_000


class PodsExpired(Exception):
    """The server does not know any more what has changed since then (410): list again."""


class PodWatch:
    """The pods in a namespace that fit a selector."""

    def __init__(self, api: KubernetesApi, namespace: str, selector: str, changed: Callable[[], None]) -> None:
        """`changed` is called after every change of `pods` or `problem`."""
        self._api = api
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._changed = changed
        self._pods: dict[str, Pod] = {}
        self._put: dict[str, Pod] | None = None
        """Those put while a list is under way, which may not have them."""
        self._gone: OrderedDict[str, None] = OrderedDict()
        """Uids that were said to be deleted, the latest ones."""
        self._version = ""
        self._listed_at: float | None = None
        self.problem = "the pods have not been listed yet"

    @property
    def pods(self) -> Mapping[str, Pod]:
        """By name, as last heard of."""
        return self._pods

    def put(self, pod: Pod) -> None:
        """Take over what the server has answered to a request of our own, unless the watch was faster."""
        name, uid = pod.metadata.name, pod.metadata.uid
        known = self._pods.get(name)
        if uid in self._gone or (known is not None and known.metadata.uid == uid and not _is_newer(pod, known)):
            return
        self._pods[name] = pod
        if self._put is not None:
            self._put[name] = pod
        self._changed()

    def drop(self, uid: str) -> None:
        """It is known to be gone."""
        self._gone[uid] = None
        if len(self._gone) > _MAX_GONE:
            self._gone.popitem(last=False)
        for name, pod in list(self._pods.items()):
            if pod.metadata.uid == uid:
                del self._pods[name]
                self._changed()

    async def run(self) -> None:
        """List and watch until cancelled."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            try:
                if not self._version or self._listed_at is None or loop.time() - self._listed_at > RELIST_SECONDS:
                    await self._list()
                    self._listed_at = loop.time()
                self._say("")
                began = loop.time()
                await self._follow()
                if loop.time() - began > 1.0:
                    failures = 0
                    continue
                failures += 1  # a server that ends every watch at once is not to be asked without a pause
            except PodsExpired:
                log.info("the API server has forgotten what changed: listing the pods again", namespace=self._namespace)
                self._version = ""
                failures += 1
            except (Unreachable, ApiRefusal, msgspec.DecodeError) as error:
                failures += 1
                self._version = ""
                after = error.retry_after_seconds if isinstance(error, ApiRefusal) else None
                self._say(self._why(error))
                await asyncio.sleep(max(after or 0.0, _pause(failures)))
                continue
            await asyncio.sleep(_pause(failures) if failures > 1 else 0.0)

    def _why(self, error: Exception) -> str:
        if isinstance(error, Unreachable):
            return str(error)
        if isinstance(error, ApiRefusal):
            return f"cannot list and watch pods in namespace {self._namespace}: {error}"
        return f"the API server's answer makes no sense: {error}"

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            if problem:
                log.warning("nothing is heard of the pods", reason=problem, namespace=self._namespace)
            elif self.problem:
                log.info("the pods are watched", pods=len(self._pods), namespace=self._namespace)
            self.problem = problem
            self._changed()

    async def _list(self) -> None:
        """Replace all. Raises PodsExpired if it took so long that the server forgot where the next page begins."""
        self._put = {}
        try:
            found: dict[str, Pod] = {}
            query = {"labelSelector": self._selector, "limit": str(PAGE_PODS)}
            while True:
                try:
                    page = msgspec.json.decode(await self._api.get(self._path, query), type=PodList)
                except ApiRefusal as error:
                    if error.code == 410:
                        raise PodsExpired from error
                    raise
                found.update((pod.metadata.name, pod) for pod in page.items or ())
                if not page.metadata.continue_:
                    break
                query["continue"] = page.metadata.continue_
            for name, pod in self._put.items():
                known = found.get(name)
                if pod.metadata.uid not in self._gone and (known is None or _is_newer(pod, known)):
                    found[name] = pod
        finally:
            self._put = None
        self._pods = found
        self._version = page.metadata.resource_version
        self._changed()

    async def _follow(self) -> None:
        """Take in events until the watch ends. Raises PodsExpired."""
        # Not all installations at the same moment.
        seconds = WATCH_SECONDS + random.randrange(10)
        query = {
            "labelSelector": self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(seconds),
        }
        try:
            async with self._api.lines(self._path, query, seconds + SILENCE_SECONDS) as lines:
                async for line in lines:
                    self._take(msgspec.json.decode(line, type=WatchEvent))
        except ApiRefusal as error:
            if error.code == 410:
                raise PodsExpired from error
            raise

    def _take(self, event: WatchEvent) -> None:
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=Status)
            if status.code == 410:
                raise PodsExpired
            raise ApiRefusal(status.code, status)
        pod = msgspec.json.decode(event.object, type=Pod)
        self._version = pod.metadata.resource_version
        match event.type:
            case "ADDED" | "MODIFIED":
                self._pods[pod.metadata.name] = pod
                self._changed()
            case "DELETED":
                self.drop(pod.metadata.uid)
            case _:
                pass  # BOOKMARK: nothing but a resourceVersion


def _is_newer(pod: Pod, known: Pod) -> bool:
    """Of two states of a pod. Resource versions of built-in kinds are numbers that grow (KEP-5504); those that are not say
    nothing, and what the watch says stands."""
    one, other = pod.metadata.resource_version, known.metadata.resource_version
    return one.isdigit() and other.isdigit() and int(one) > int(other)


def _pause(failures: int) -> float:
    longest: float = min(LONGEST_PAUSE_SECONDS, SHORTEST_PAUSE_SECONDS * 2 ** min(failures, 10))
    return random.uniform(longest / 2, longest)
