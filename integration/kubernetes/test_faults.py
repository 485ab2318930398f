"""An API server that is throttled, forgets, breaks, falls silent or is gone: what is known stays, the reason is said, and all is
well again without a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.kubernetes.faults import CLOSED, SILENT, Answer, Event, FaultProxy, Instead, Verdict
from integration.kubernetes.namespace import Namespace, heard, watching
from rexec.autoscale import kubernetes_api, kubernetes_watch
from rexec.autoscale.provider import Refused
from rexec.autoscale.settings import AutoscaleSettings, PoolSettings

POOL = PoolSettings(name="cpu", image="example.com/rexec:1")
SETTINGS = AutoscaleSettings(pools=(POOL,))

Proxied = tuple[FaultProxy, Path]


def _is_watch(target: str) -> bool:
    return "watch=true" in target


async def test_a_server_that_is_gone_is_said_to_be_and_pods_stay_known(proxied: Proxied, namespace: Namespace) -> None:
    proxy, kubeconfig = proxied
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        proxy.judge = lambda method, target: CLOSED
        proxy.cut()
        await heard(provider, lambda: bool(provider.problem), "the outage")
        assert provider.problem.startswith(f"cannot reach the API server at 127.0.0.1:{proxy.port}: ")
        assert set(provider.machines()) == {"cpu-1"}
        for request in (provider.start(POOL, "cpu-2"), provider.remove("cpu-1", 0)):
            with pytest.raises(Refused, match="cannot reach the API server") as refusal:
                await request
            assert not refusal.value.lasting
        await namespace.delete("cpu-1")
        proxy.judge = lambda method, target: None
        await heard(provider, lambda: not provider.problem, "the end of the outage")
        assert provider.machines() == {}
        await provider.start(POOL, "cpu-2")
    assert [pod["metadata"]["name"] for pod in await namespace.pods()] == ["cpu-2"]


async def test_a_server_that_falls_silent_is_found_out(
    proxied: Proxied, namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_watch, "WATCH_SECONDS", 1)
    monkeypatch.setattr(kubernetes_watch, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(kubernetes_api, "REQUEST_SECONDS", 1.0)
    proxy, kubeconfig = proxied
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        proxy.judge = lambda method, target: SILENT
        with pytest.raises(Refused, match="does not answer in time") as refusal:
            await provider.start(POOL, "cpu-1")
        assert not refusal.value.lasting
        await heard(provider, lambda: "does not answer in time" in provider.problem, "the silence")
        proxy.judge = lambda method, target: None
        await heard(provider, lambda: not provider.problem, "the end of the silence")
        await provider.start(POOL, "cpu-1")


async def test_a_broken_watch_goes_on_unnoticed(proxied: Proxied, namespace: Namespace) -> None:
    proxy, kubeconfig = proxied
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        for _ in range(3):
            proxy.cut()
        await namespace.delete("cpu-1")
        await heard(provider, lambda: not provider.machines() and not provider.problem, "the end of the pod")


async def test_a_version_that_the_server_has_forgotten_makes_it_list_again(
    proxied: Proxied, namespace: Namespace
) -> None:
    proxy, kubeconfig = proxied
    expired: list[str] = []

    def judge(method: str, target: str) -> Verdict:
        if not _is_watch(target) or len(expired) == 2:
            return None
        expired.append(target)
        if len(expired) == 1:
            # How a server says it once the watch has begun.
            return Event("ERROR", 410, "too old resource version: 1 (2)")
        return Answer(410, "Expired", "too old resource version")

    proxy.judge = judge
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        await namespace.delete("cpu-1")
        await heard(provider, lambda: len(expired) == 2 and not provider.machines(), "the end of the pod")
        assert provider.problem == ""
    lists = [target for method, target in proxy.requests if method == "GET" and not _is_watch(target)]
    assert len(lists) >= 3


async def test_a_throttled_request_is_put_off_for_as_long_as_the_server_says(
    proxied: Proxied, namespace: Namespace
) -> None:
    proxy, kubeconfig = proxied
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        proxy.judge = lambda method, target: (
            Answer(429, "TooManyRequests", "slow down", 7) if method == "POST" else None
        )
        with pytest.raises(Refused, match="slow down") as refusal:
            await provider.start(POOL, "cpu-1")
        assert refusal.value.retry_after_seconds == 7
        assert not refusal.value.lasting
        proxy.judge = lambda method, target: None
        await provider.start(POOL, "cpu-1")


@pytest.mark.parametrize("code", [500, 503, 504])
async def test_a_server_in_trouble_is_asked_again(code: int, proxied: Proxied, namespace: Namespace) -> None:
    proxy, kubeconfig = proxied
    proxy.judge = lambda method, target: Answer(code, "InternalError", "etcd has no leader")
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: "etcd has no leader" in provider.problem, "the trouble")
        proxy.judge = lambda method, target: Answer(code, "InternalError", "no") if method == "POST" else None
        await heard(provider, lambda: not provider.problem, "the end of the trouble")
        with pytest.raises(Refused, match="cannot start a pod in namespace") as refusal:
            await provider.start(POOL, "cpu-1")
        assert not refusal.value.lasting
        proxy.judge = lambda method, target: None
        await provider.start(POOL, "cpu-1")


async def test_two_who_change_the_same_at_once_try_again(proxied: Proxied, namespace: Namespace) -> None:
    proxy, kubeconfig = proxied
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        conflict = Answer(409, "Conflict", "Operation cannot be fulfilled on resourcequotas: modified")
        proxy.judge = lambda method, target: conflict if method == "POST" else None
        with pytest.raises(Refused, match="Operation cannot be fulfilled") as refusal:
            await provider.start(POOL, "cpu-1")
        assert (refusal.value.lasting, refusal.value.retry_after_seconds) == (False, 1)
        proxy.judge = lambda method, target: None
        await provider.start(POOL, "cpu-1")
        deletions: list[str] = []

        def once(method: str, target: str) -> Verdict:
            if method == "DELETE":
                deletions.append(target)
            return conflict if method == "DELETE" and len(deletions) == 1 else None

        proxy.judge = once
        await provider.remove("cpu-1", 1)
        await heard(provider, lambda: not provider.machines(), "the end of the pod")
        assert len(deletions) == 2


async def test_a_pod_of_the_same_name_that_is_not_the_one_meant_is_spared(
    proxied: Proxied, namespace: Namespace
) -> None:
    proxy, kubeconfig = proxied
    proxy.judge = lambda method, target: SILENT if _is_watch(target) else None
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: not provider.problem, "the first list")
        await provider.start(POOL, "cpu-1")
        await namespace.delete("cpu-1")
        container = {"name": "c", "image": "example.com/other"}
        other = await namespace.make("pods", {"metadata": {"name": "cpu-1"}, "spec": {"containers": [container]}})
        await provider.remove("cpu-1", 0)
        assert provider.machines() == {}
    (pod,) = await namespace.pods()
    assert pod["metadata"]["uid"] == other["metadata"]["uid"]
    assert "deletionTimestamp" not in pod["metadata"]


async def test_an_answer_that_makes_no_sense_is_trouble_and_not_the_end(proxied: Proxied, namespace: Namespace) -> None:
    proxy, kubeconfig = proxied
    proxy.judge = lambda method, target: Instead("/healthz")
    async with watching(SETTINGS, kubeconfig, namespace.name) as provider:
        await heard(provider, lambda: "makes no sense" in provider.problem, "the trouble")
        proxy.judge = lambda method, target: None
        await heard(provider, lambda: not provider.problem, "the end of the trouble")
