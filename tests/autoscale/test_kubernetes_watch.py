"""Pods kept true by lists and watches, over an API that says what the test wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest

from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, Unreachable
from rexec.autoscale.kubernetes_messages import Metadata, Pod, Status
from rexec.autoscale.kubernetes_watch import PodWatch


class ScriptedApi:
    """Answers lists and watches from two queues, in turn; a watch without a script lasts."""

    def __init__(self) -> None:
        self.lists: asyncio.Queue[Any] = asyncio.Queue()
        self.watches: asyncio.Queue[Any] = asyncio.Queue()
        self.queries: list[dict[str, str]] = []
        self.asked = asyncio.Event()
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        """Of the watch that lasts; None ends it."""

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> bytes:
        self.queries.append(dict(query or {}))
        self.asked.set()
        answer = await self.lists.get()
        if isinstance(answer, Exception):
            raise answer
        return msgspec.json.encode(answer)

    @asynccontextmanager
    async def lines(
        self, path: str, query: Mapping[str, str], silence_seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        self.queries.append(dict(query))
        if not self.watches.empty():
            raise self.watches.get_nowait()
        yield self._events()

    async def _events(self) -> AsyncIterator[bytes]:
        while (event := await self.events.get()) is not None:
            yield msgspec.json.encode(event) + b"\n"


def item(name: str, uid: str, version: int, phase: str = "Pending") -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": uid, "resourceVersion": str(version)}, "status": {"phase": phase}}


def listed(version: int, *items: dict[str, Any], more: str = "") -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version), **({"continue": more} if more else {})}, "items": list(items)}


def answered(name: str, uid: str, version: int) -> Pod:
    return Pod(metadata=Metadata(name=name, uid=uid, resource_version=str(version)))


class Watching:
    """A watch that runs, and its API."""

    def __init__(self) -> None:
        self.api = ScriptedApi()
        self._changed = asyncio.Event()
        self.watch = PodWatch(cast(KubernetesApi, self.api), "ci", "a=b", self._changed.set)

    async def until(self, **pods: str) -> None:
        """Return once exactly these pods, name and uid, are known and nothing is wrong."""
        async with asyncio.timeout(10):
            while self.known() != pods or self.watch.problem:
                self._changed.clear()
                await self._changed.wait()

    async def until_problem(self, words: str) -> None:
        async with asyncio.timeout(10):
            while words not in self.watch.problem:
                self._changed.clear()
                await self._changed.wait()

    def known(self) -> dict[str, str]:
        return {name: pod.metadata.uid for name, pod in self.watch.pods.items()}


@pytest.fixture
async def watching() -> AsyncIterator[Watching]:
    made = Watching()
    running = asyncio.create_task(made.watch.run())
    yield made
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_pages_are_one_list_and_the_watch_begins_where_it_ends(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5, item("a", "1", 2), more="token"))
    api.lists.put_nowait(listed(5, item("b", "2", 3)))
    await watching.until(a="1", b="2")
    api.events.put_nowait({"type": "ADDED", "object": item("c", "3", 6)})
    api.events.put_nowait({"type": "MODIFIED", "object": item("a", "1", 7, "Running")})
    api.events.put_nowait({"type": "DELETED", "object": item("b", "2", 8)})
    await watching.until(a="1", c="3")
    assert watching.watch.pods["a"].status.phase == "Running"
    assert api.queries[1]["continue"] == "token"
    assert api.queries[2]["resourceVersion"] == "5"


async def test_a_watch_that_ends_goes_on_from_the_last_bookmark(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5))
    await watching.until()
    api.events.put_nowait({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "90"}}})
    api.events.put_nowait(None)
    api.events.put_nowait({"type": "ADDED", "object": item("a", "1", 91)})
    await watching.until(a="1")
    assert [query.get("resourceVersion") for query in api.queries] == [None, "5", "90"]


@pytest.mark.parametrize("early", [True, False])
async def test_a_forgotten_version_is_listed_again(early: bool, watching: Watching) -> None:
    api = watching.api
    gone = ApiRefusal(410, Status(code=410, message="too old"))
    if early:
        api.watches.put_nowait(gone)
    else:
        api.events.put_nowait({"type": "ERROR", "object": {"code": 410, "message": "too old"}})
    api.lists.put_nowait(listed(5, item("a", "1", 2)))
    api.lists.put_nowait(listed(9, item("b", "2", 8)))
    await watching.until(b="2")


async def test_a_list_whose_next_page_is_forgotten_begins_anew(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5, item("a", "1", 2), more="token"))
    api.lists.put_nowait(ApiRefusal(410, Status(code=410)))
    api.lists.put_nowait(listed(9, item("b", "2", 8)))
    await watching.until(b="2")
    assert "continue" not in api.queries[2]


async def test_pods_stay_known_while_the_server_is_away(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5, item("a", "1", 2)))
    await watching.until(a="1")
    api.watches.put_nowait(Unreachable("cannot reach the API server at h:1: refused"))
    api.events.put_nowait(None)
    await watching.until_problem("cannot reach")
    assert watching.known() == {"a": "1"}
    api.lists.put_nowait(ApiRefusal(403, Status(message="pods is forbidden")))
    await watching.until_problem("cannot list and watch pods in namespace ci: pods is forbidden")
    api.lists.put_nowait(listed(7, item("a", "1", 2)))
    await watching.until(a="1")


async def test_an_answer_to_a_request_counts_until_the_watch_knows_better(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5))
    await watching.until()
    watching.watch.put(answered("a", "1", 6))
    assert watching.known() == {"a": "1"}
    api.events.put_nowait({"type": "MODIFIED", "object": item("a", "1", 8, "Running")})
    api.events.put_nowait({"type": "ADDED", "object": item("b", "2", 9)})
    await watching.until(a="1", b="2")
    watching.watch.put(answered("a", "1", 7))
    assert watching.watch.pods["a"].status.phase == "Running"


async def test_a_pod_that_was_gone_before_its_creation_was_answered_stays_gone(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5))
    await watching.until()
    api.events.put_nowait({"type": "ADDED", "object": item("a", "1", 6)})
    api.events.put_nowait({"type": "DELETED", "object": item("a", "1", 7)})
    api.events.put_nowait({"type": "ADDED", "object": item("b", "2", 8)})
    await watching.until(b="2")
    watching.watch.put(answered("a", "1", 6))
    assert watching.known() == {"b": "2"}


async def test_a_pod_made_while_a_list_is_under_way_is_not_lost(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5, more="token"))
    async with asyncio.timeout(10):
        while len(api.queries) < 2:
            api.asked.clear()
            await api.asked.wait()
    watching.watch.put(answered("a", "1", 6))
    api.lists.put_nowait(listed(5))
    await watching.until(a="1")


async def test_a_deletion_of_an_earlier_pod_of_that_name_spares_the_later_one(watching: Watching) -> None:
    api = watching.api
    api.lists.put_nowait(listed(5, item("a", "1", 2)))
    await watching.until(a="1")
    watching.watch.put(answered("a", "2", 8))
    api.events.put_nowait({"type": "DELETED", "object": item("a", "1", 7)})
    api.events.put_nowait({"type": "ADDED", "object": item("b", "3", 9)})
    await watching.until(a="2", b="3")
