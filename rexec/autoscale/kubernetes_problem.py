"""What a pod's status says, for people, and whether waiting can help. Pure.

A pod that cannot be scheduled is not hopeless: the cluster's own autoscaler may be bringing a node, and the pool's start_timeout
ends the waiting. An image that is not there will not be there in a minute either; a registry that does not answer may.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec

from rexec.autoscale.kubernetes_messages import Condition, ContainerStatus, Pod, Terminated, plain
from rexec.autoscale.provider import Machine, Phase

POOL_LABEL: Final = "rexec.dev/pool"
IMAGE_ANNOTATION: Final = "rexec.dev/container-image"
WORKER: Final = "worker"
"""The name of the container in which the worker runs, unless the template has no such container."""
WORKER_ANNOTATION: Final = "kubectl.kubernetes.io/default-container"
"""Which container that is; `kubectl logs` and `exec` take it too."""

_HOPELESS: Final = frozenset(
    {"InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
)
_PULLING: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"}
)
_NO_SUCH_IMAGE: Final = ("not found", "manifest unknown", "does not exist", "denied", "unauthorized", "forbidden")
"""In what registries and container runtimes say of an image that they do not give."""
_NO_NEWS: Final = frozenset({"", "ContainerCreating", "PodInitializing"})
_SIGNALS: Final = 128
"""Exit codes above it are signals, as in a shell."""


class Problem(msgspec.Struct, frozen=True):
    """What is wrong with a pod."""

    text: str = ""
    """Empty: nothing."""
    hopeless: bool = False


def machine_of(pod: Pod) -> Machine:
    """What the autoscaler knows of a pod."""
    ended = _ended(pod)
    phase = _phase(pod)
    found = problem_of(pod)
    labels, annotations = pod.metadata.labels or {}, pod.metadata.annotations or {}
    return Machine(
        name=pod.metadata.name,
        pool=labels.get(POOL_LABEL, ""),
        created_at=_seconds(pod.metadata.creation_timestamp),
        phase=phase,
        problem=found.text,
        hopeless=found.hopeless,
        exit_code=ended.exit_code if ended is not None and phase is Phase.ENDED else None,
        image=annotations.get(IMAGE_ANNOTATION, ""),
    )


def problem_of(pod: Pod) -> Problem:
    """Why the pod does not run, or how it ended if that was not well."""
    status = pod.status
    if status.phase == "Failed":
        return Problem(_failure(pod))
    if status.phase == "Succeeded":
        return Problem()
    for container in _containers(pod):
        if (waiting := container.state and container.state.waiting) and waiting.reason not in _NO_NEWS:
            return _waiting(container, waiting.reason, plain(waiting.message))
    for condition in status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return Problem(f"the pod cannot be scheduled: {_said(condition)}")
    if status.reason == "NodeLost":
        return Problem(f"the node does not answer: {plain(status.message)}")
    if status.phase == "Unknown":
        return Problem("the node does not answer")
    for condition in status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return Problem(f"the pod is taken away: {_said(condition)}")
    return Problem()


def _waiting(container: ContainerStatus, reason: str, message: str) -> Problem:
    if reason in _PULLING:
        hopeless = any(words in message.lower() for words in _NO_SUCH_IMAGE)
        return Problem(f"the image cannot be pulled: {message or reason}", hopeless)
    if reason == "CrashLoopBackOff":
        last = container.last_state and container.last_state.terminated
        how = f": {_end(last)}" if last else ""
        return Problem(f"container {container.name} ends again and again{how}", hopeless=True)
    return Problem(
        f"container {container.name} cannot start: {reason}{': ' if message else ''}{message}", reason in _HOPELESS
    )


def _failure(pod: Pod) -> str:
    """Of a pod that has failed. A worker that was told to end, has drained and says 0 has not."""
    status = pod.status
    if status.reason:
        # Evicted, Preempting, NodeShutdown, DeadlineExceeded, UnexpectedAdmissionError, OutOfcpu, ...
        return f"{status.reason}{': ' if status.message else ''}{plain(status.message)}"
    for condition in status.conditions or ():
        if condition.type == "DisruptionTarget" and condition.status == "True":
            return f"the pod was taken away: {_said(condition)}"
    for container in _containers(pod):
        ended = container.state and container.state.terminated
        if ended and ended.exit_code != 0:
            return f"container {container.name} {_end(ended)}"
    return "the pod has failed"


def _end(ended: Terminated) -> str:
    code = f"exit code {ended.exit_code}"
    if ended.exit_code > _SIGNALS:
        code = f"signal {ended.exit_code - _SIGNALS}"
    said = plain(ended.message)
    if ended.reason == "OOMKilled":
        return "was killed: it took more memory than its limit (OOMKilled)"
    reason = f", {ended.reason}" if ended.reason not in ("", "Error", "Completed") else ""
    return f"ended with {code}{reason}{': ' if said else ''}{said}"


def _phase(pod: Pod) -> Phase:
    if pod.status.phase in ("Failed", "Succeeded"):
        return Phase.ENDED
    if pod.metadata.deletion_timestamp is not None:
        return Phase.LEAVING
    if _ended(pod) is not None:
        return Phase.ENDED  # the worker; another container of the template's goes on
    return Phase.RUNNING if pod.status.phase in ("Running", "Unknown") else Phase.WAITING


def _ended(pod: Pod) -> Terminated | None:
    """How the worker's container ended."""
    name = (pod.metadata.annotations or {}).get(WORKER_ANNOTATION, WORKER)
    for container in pod.status.container_statuses or ():
        if container.name == name:
            return container.state.terminated if container.state is not None else None
    return None


def _containers(pod: Pod) -> Iterator[ContainerStatus]:
    yield from pod.status.init_container_statuses or ()
    yield from pod.status.container_statuses or ()


def _said(condition: Condition) -> str:
    return plain(condition.message or "") or condition.reason or "no reason is given"


def _seconds(timestamp: str | None) -> float:
    """Since 1970, of an RFC 3339 time; 0 if there is none."""
    try:
        return datetime.fromisoformat(timestamp or "").timestamp()
    except ValueError:
        return 0.0
