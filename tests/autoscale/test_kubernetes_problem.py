"""What a pod's status comes to."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from rexec.autoscale.kubernetes_api import ApiRefusal, Unreachable
from rexec.autoscale.kubernetes_messages import Pod, Status, plain
from rexec.autoscale.kubernetes_problem import machine_of, problem_of
from rexec.autoscale.kubernetes_refusal import refused
from rexec.autoscale.provider import Machine, Phase


def pod(status: dict[str, Any], **metadata: Any) -> Pod:
    labels = {"rexec.dev/pool": "cpu"}
    body = {
        "metadata": {"name": "cpu-1", "labels": labels, "creationTimestamp": "2026-11-02T03:04:05Z", **metadata},
        "status": status,
    }
    return msgspec.json.decode(msgspec.json.encode(body), type=Pod)


def waiting(reason: str, message: str = "", *, init: bool = False) -> Pod:
    container = {"name": "worker", "state": {"waiting": {"reason": reason, "message": message}}}
    return pod({"phase": "Pending", "initContainerStatuses" if init else "containerStatuses": [container]})


def terminated(phase: str = "Failed", name: str = "worker", **state: Any) -> Pod:
    return pod({"phase": phase, "containerStatuses": [{"name": name, "state": {"terminated": state}}]})


@pytest.mark.parametrize(
    ("found", "text", "hopeless"),
    [
        (pod({"phase": "Pending"}), "", False),
        (pod({}), "", False),
        (pod({"phase": "Running"}), "", False),
        (waiting("ContainerCreating"), "", False),
        (waiting("PodInitializing"), "", False),
        (
            pod({"phase": "Pending", "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}]}),
            "the pod cannot be scheduled: 0/3 nodes are available", False,
        ),
        (
            pod({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
            "the pod cannot be scheduled: SchedulingGated", False,
        ),
        (waiting("ErrImagePull", "dial tcp: i/o timeout"), "the image cannot be pulled: dial tcp: i/o timeout", False),
        (waiting("ErrImagePull", "manifest unknown"), "the image cannot be pulled: manifest unknown", True),
        (waiting("ErrImagePull", "x: Not Found", init=True), "the image cannot be pulled: x: Not Found", True),
        (waiting("ImagePullBackOff"), "the image cannot be pulled: ImagePullBackOff", False),
        (
            waiting("InvalidImageName", 'couldn\'t parse "X"'),
            'container worker cannot start: InvalidImageName: couldn\'t parse "X"', True,
        ),
        (
            waiting("CreateContainerConfigError", 'secret "ca" not found'),
            'container worker cannot start: CreateContainerConfigError: secret "ca" not found', True,
        ),
        (waiting("SomethingNew"), "container worker cannot start: SomethingNew", False),
        (
            pod({"phase": "Running", "containerStatuses": [
                {"name": "side", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": {"exitCode": 3, "reason": "Error"}}}]}),
            "container side ends again and again: ended with exit code 3", True,
        ),
        (
            terminated(exitCode=137, reason="OOMKilled"),
            "container worker was killed: it took more memory than its limit (OOMKilled)", False,
        ),
        (terminated(exitCode=137, reason="Error"), "container worker ended with signal 9", False),
        (terminated(exitCode=1, reason="Error", message="bad"), "container worker ended with exit code 1: bad", False),
        (terminated(exitCode=128, reason="StartError"), "container worker ended with exit code 128, StartError", False),
        (terminated("Succeeded", exitCode=0), "", False),
        (pod({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}), "Evicted: low on disk", False),
        (pod({"phase": "Failed", "reason": "Preempting"}), "Preempting", False),
        (
            pod({"phase": "Failed", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"}]}),
            "the pod was taken away: preempted", False,
        ),
        (
            pod({"phase": "Running", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]}),
            "the pod is taken away: EvictionByEvictionAPI", False,
        ),
        (pod({"phase": "Failed"}), "the pod has failed", False),
        (pod({"phase": "Running", "reason": "NodeLost", "message": "node n"}), "the node does not answer: node n", False),
        (pod({"phase": "Unknown"}), "the node does not answer", False),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_pod_is_said_and_whether_waiting_helps(found: Pod, text: str, hopeless: bool) -> None:
    problem = problem_of(found)
    assert (problem.text, problem.hopeless) == (text, hopeless)


def test_a_machine_is_what_the_pod_says_of_itself() -> None:
    found = pod({"phase": "Running"}, annotations={"rexec.dev/container-image": "docker://gcc:13"})
    assert machine_of(found) == Machine(
        "cpu-1", "cpu", 1793588645.0, Phase.RUNNING, image="docker://gcc:13"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "phase", "exit_code"),
    [
        (pod({"phase": "Pending"}), Phase.WAITING, None),
        (pod({"phase": "Running"}, deletionTimestamp="2026-11-02T03:04:06Z"), Phase.LEAVING, None),
        (terminated("Succeeded", exitCode=0), Phase.ENDED, 0),
        (terminated("Failed", exitCode=1), Phase.ENDED, 1),
        (terminated("Running", exitCode=2), Phase.ENDED, 2),
        (terminated("Running", name="sidecar", exitCode=2), Phase.RUNNING, None),
        (pod({"phase": "Failed", "reason": "Evicted"}), Phase.ENDED, None),
    ],
)
def test_how_far_a_pod_is(found: Pod, phase: Phase, exit_code: int | None) -> None:
    machine = machine_of(found)
    assert (machine.phase, machine.exit_code) == (phase, exit_code)


def test_a_time_that_is_none_does_not_hide_the_pod() -> None:
    assert machine_of(pod({}, creationTimestamp="yesterday")).created_at == 0.0
    assert machine_of(pod({}, creationTimestamp=None)).created_at == 0.0


def test_what_a_cluster_says_does_not_reach_a_terminal_as_commands() -> None:
    assert plain("a\x1b[31m\nb\x9b") == "a [31m b"
    assert len(plain("x" * 10_000)) < 700


@pytest.mark.parametrize(
    ("code", "message", "after", "lasting", "retry_after"),
    [
        (401, "Unauthorized", None, True, None),
        (403, 'User "u" cannot create resource "pods"', None, True, None),
        (403, 'pods "p" is forbidden: exceeded quota: q, requested: pods=1', None, False, 30.0),
        (403, 'violates PodSecurity "restricted:latest"', None, True, None),
        (404, 'namespaces "n" not found', None, True, None),
        (408, "timeout", None, False, None),
        (409, "Operation cannot be fulfilled", None, False, 1.0),
        (422, 'Pod "p" is invalid', None, True, None),
        (429, "too many requests", 3.0, False, 3.0),
        (429, "too many requests", None, False, 5.0),
        (500, "etcdserver: leader changed", 2.0, False, 2.0),
        (503, "shutting down", None, False, None),
    ],
)
def test_a_refusal_says_whether_it_lasts(
    code: int, message: str, after: float | None, lasting: bool, retry_after: float | None
) -> None:
    refusal = refused(ApiRefusal(code, Status(message=message), after), "start a pod in namespace n")
    assert (refusal.lasting, refusal.retry_after_seconds) == (lasting, retry_after)
    assert str(refusal).startswith("cannot start a pod in namespace n: ")
    assert message in str(refusal)


def test_a_server_that_does_not_answer_may_answer_later() -> None:
    refusal = refused(Unreachable("cannot reach the API server at h:1: refused"), "delete pod p")
    assert str(refusal) == "cannot delete pod p: cannot reach the API server at h:1: refused"
    assert not refusal.lasting
