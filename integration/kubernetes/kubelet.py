"""Stands in for the kubelets of nodes that do not exist: pods bound to them run as processes of this machine.

    python -m integration.kubernetes.kubelet --kubeconfig FILE --nodes NAME --number 3 --folder DIR

Its nodes NAME-0, NAME-1, ... have the label and the taint rexec.dev/test-nodes=NAME: they take no other pods than those that ask
for them.

Keeps the nodes Ready (status and lease), runs init containers one after the other and then the containers of each pod that the
scheduler binds to one of the nodes, says how they are, and on deletion sends SIGTERM, SIGKILL after the grace, and takes the
object away. Images are ignored: there is one file system, and a volume is a directory whose path takes the place of the mount
path in commands, arguments and variables; integration/kubernetes/mounted.py says what becomes of ConfigMaps, Secrets and the
names of Services. An image that begins with does-not-exist/ cannot be pulled. Every pod has a loopback
address of its own.

Once the nodes take pods there is a file DIR/ready. Each container that starts or ends is a line in DIR/log:
start POD PID TIME, end POD PID TIME CODE.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from integration.kubernetes.mounted import Surroundings
from integration.process import descendants_of
from rexec.autoscale.kubernetes_api import ApiRefusal, KubernetesApi, Unreachable, open_api

NODES = "rexec.dev/test-nodes"
HEARTBEAT_SECONDS = 10.0
RETRY_SECONDS = 0.5
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_PLACED = {"PodScheduled": "True", "Initialized": "True"}
CAPACITY = {"cpu": "16", "memory": "64Gi", "pods": "100", "ephemeral-storage": "500Gi"}


class RunningPod:
    """A pod that was bound to a node of ours, from then until its object is gone."""

    def __init__(self, kubelet: Kubelet, pod: dict[str, Any]) -> None:
        self._kubelet = kubelet
        self.pod = pod
        self.path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/pods/{pod['metadata']['name']}"
        self.uid: str = pod["metadata"]["uid"]
        number = int(self.uid.replace("-", "")[:6], 16)
        self.ip = f"127.{100 + (number >> 16) % 100}.{(number >> 8) % 256}.{number % 254 + 1}"
        self.folder = kubelet.folder / self.uid
        self._surroundings = Surroundings(kubelet.api, pod, self.ip)
        self.leaving = asyncio.Event()
        self.grace_seconds = 30.0
        self.gone = asyncio.Event()
        self._statuses: dict[str, dict[str, Any]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}

    async def run(self) -> None:
        """Run it to its end, whatever that is, and delete it once somebody wants it deleted."""
        ending = asyncio.create_task(self.leaving.wait())
        life = asyncio.create_task(self._live())
        try:
            await asyncio.wait({ending, life}, return_when=asyncio.FIRST_COMPLETED)
            if not life.done():
                await self._end(life)
            phase = await life if not life.cancelled() else "Failed"
            await self._say(phase)
            await ending
            await self._kubelet.until_done(
                lambda: self._kubelet.api.delete(
                    self.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
                )
            )
        finally:
            ending.cancel()
            self.kill()

    def kill(self) -> None:
        """SIGKILL to every process of the pod."""
        for process in self._processes.values():
            if process.returncode is None:
                for pid in (process.pid, *descendants_of(process.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    async def _live(self) -> str:
        spec = self.pod["spec"]
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            if container["image"].startswith("does-not-exist/"):
                text = f'failed to pull image "{container["image"]}": not found'
                self._statuses[container["name"]] = {"waiting": {"reason": "ErrImagePull", "message": text}}
                await self._say("Pending")
                await asyncio.Event().wait()
        if self._kubelet.start_delay_seconds:
            await asyncio.sleep(self._kubelet.start_delay_seconds)
        for container in spec.get("initContainers", ()):
            process = await self._start(container)
            await self._say("Pending")
            if await self._wait(container["name"], process) != 0:
                return "Failed"
        started = [(container["name"], await self._start(container)) for container in spec["containers"]]
        await self._say("Running")
        codes = await asyncio.gather(*(self._wait(name, process) for name, process in started))
        return "Succeeded" if not any(codes) else "Failed"

    async def _end(self, life: asyncio.Task[str]) -> None:
        running = [process for process in self._processes.values() if process.returncode is None]
        if not running:
            life.cancel()
            await asyncio.wait({life})
            return
        for process in running:
            process.terminate()
        gone = asyncio.create_task(self.gone.wait())
        await asyncio.wait({life, gone}, timeout=self.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        self.kill()
        await asyncio.wait({life})

    async def _start(self, container: dict[str, Any]) -> asyncio.subprocess.Process:
        mounts = {}
        for mount in container.get("volumeMounts", ()):
            directory = self.folder / "volumes" / mount["name"] / mount.get("subPath", "")
            directory.mkdir(parents=True, exist_ok=True)
            mounts[mount["mountPath"]] = str(directory)
        variables = dict(self._kubelet.image_environment)
        for variable in container.get("env", ()):
            variables[variable["name"]] = _placed(_expanded(self._value(variable), variables), mounts)
        words = [
            await self._surroundings.located(_placed(_expanded(word, variables), mounts))
            for word in (*container.get("command", ()), *container.get("args", ()))
        ]
        for volume in self.pod["spec"].get("volumes", ()):
            directory = self.folder / "volumes" / volume["name"]
            await self._surroundings.lay_out(volume, directory, lambda text: _placed(text, mounts))
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{container['name']}.log").open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *words,
                env=variables,
                cwd=self.folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._processes[container["name"]] = process
        self._statuses[container["name"]] = {"running": {"startedAt": _now()}}
        self._kubelet.note("start", self.pod["metadata"]["name"], process.pid)
        return process

    async def _wait(self, name: str, process: asyncio.subprocess.Process) -> int:
        code = await process.wait()
        code = code if code >= 0 else 128 - code
        self._kubelet.note("end", self.pod["metadata"]["name"], process.pid, code)
        reason = "Completed" if code == 0 else "Error"
        self._statuses[name] = {"terminated": {"exitCode": code, "reason": reason, "finishedAt": _now()}}
        return code

    async def _say(self, phase: str) -> None:
        """The status of the pod, as it is now."""
        spec = self.pod["spec"]
        ready = str(phase == "Running")
        status = {
            "phase": phase,
            "podIP": self.ip,
            "podIPs": [{"ip": self.ip}],
            "hostIP": "127.0.0.1",
            "startTime": _now(),
            "conditions": [
                {"type": name, "status": value, "lastTransitionTime": _now()}
                for name, value in {**_PLACED, "ContainersReady": ready, "Ready": ready}.items()
            ],
            "initContainerStatuses": [self._status(container) for container in spec.get("initContainers", ())],
            "containerStatuses": [self._status(container) for container in spec["containers"]],
        }
        body = {"metadata": {"uid": self.uid}, "status": status}
        await self._kubelet.until_done(lambda: self._kubelet.api.patch(f"{self.path}/status", body))

    def _status(self, container: dict[str, Any]) -> dict[str, Any]:
        state = self._statuses.get(container["name"], {"waiting": {"reason": "ContainerCreating"}})
        runs = "running" in state
        return {
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "restartCount": 0,
            "ready": runs,
            "started": runs,
            "state": state,
        }

    def _value(self, variable: dict[str, Any]) -> str:
        if "value" in variable or "valueFrom" not in variable:
            return str(variable.get("value", ""))
        path = variable["valueFrom"]["fieldRef"]["fieldPath"]
        return str({"status.podIP": self.ip, "metadata.name": self.pod["metadata"]["name"],
                    "metadata.namespace": self.pod["metadata"]["namespace"], "metadata.uid": self.uid,
                    "spec.nodeName": self.pod["spec"]["nodeName"]}[path])  # fmt: skip


class Kubelet:
    """All nodes."""

    def __init__(
        self,
        api: KubernetesApi,
        name: str,
        number: int,
        folder: Path,
        image_environment: dict[str, str],
        start_delay_seconds: float,
    ) -> None:
        """`image_environment` stands for what images declare."""
        self.api = api
        self.folder = folder
        self.image_environment = image_environment
        self.start_delay_seconds = start_delay_seconds
        self._name = name
        self._nodes = [f"{name}-{place}" for place in range(number)]
        self._pods: dict[str, RunningPod] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled; then every process of every pod is killed and the nodes are taken away."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_ready())
                tasks.create_task(self._follow())
        finally:
            for pod in self._pods.values():
                pod.kill()
            for node in self._nodes:
                with contextlib.suppress(ApiRefusal, Unreachable):
                    await self.api.delete(f"/api/v1/nodes/{node}", {})

    def note(self, what: str, pod: str, pid: int, *more: object) -> None:
        """A line in the log."""
        with (self.folder / "log").open("a") as log:
            print(what, pod, pid, f"{time.time():.3f}", *more, file=log)

    async def until_done(self, request: Any) -> None:
        """Ask again until the server has answered; that there is nothing of that name any more is an answer."""
        while True:
            try:
                await request()
            except Unreachable:
                pass
            except ApiRefusal as error:
                if error.code in (404, 409, 422):
                    return
            else:
                return
            await asyncio.sleep(RETRY_SECONDS)

    async def _keep_ready(self) -> None:
        known = False
        while True:
            with contextlib.suppress(ApiRefusal, Unreachable):
                for node in self._nodes:
                    if not known:
                        await self._join(node)
                    await self._heartbeat(node)
                known = True
                if not (self.folder / "ready").exists() and await self._take_pods():
                    (self.folder / "ready").touch()
            joined = (self.folder / "ready").exists()
            await asyncio.sleep(HEARTBEAT_SECONDS if joined else RETRY_SECONDS)

    async def _take_pods(self) -> bool:
        """Whether the controllers have taken notice of all nodes and found them well: their taints are gone then."""
        found = json.loads(await self.api.get("/api/v1/nodes", {"labelSelector": f"{NODES}={self._name}"}))
        return all([taint["key"] for taint in node["spec"].get("taints", ())] == [NODES] for node in found["items"])

    async def _join(self, node: str) -> None:
        labels = {"kubernetes.io/hostname": node, "kubernetes.io/os": "linux", NODES: self._name}
        taint = {"key": NODES, "value": self._name, "effect": "NoSchedule"}
        body = {"metadata": {"name": node, "labels": labels}, "spec": {"taints": [taint]}}
        try:
            await self.api.post("/api/v1/nodes", body)
        except ApiRefusal as error:
            if error.code != 409:
                raise
        lease = {"metadata": {"name": node}, "spec": {"holderIdentity": node, "leaseDurationSeconds": 40}}
        with contextlib.suppress(ApiRefusal):
            await self.api.post(LEASES, lease)

    async def _heartbeat(self, node: str) -> None:
        now = {"lastHeartbeatTime": _now(), "lastTransitionTime": _now(), "reason": "StandIn"}
        conditions = [
            {"type": name, "status": str(name == "Ready"), **now}
            for name in ("Ready", "MemoryPressure", "DiskPressure", "PIDPressure")
        ]
        status = {"capacity": CAPACITY, "allocatable": CAPACITY, "conditions": conditions}
        await self.api.patch(f"/api/v1/nodes/{node}/status", {"status": status})
        renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        await self.api.patch(f"{LEASES}/{node}", {"spec": {"renewTime": renewed}})

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(ApiRefusal, Unreachable):
                listed = json.loads(await self.api.get("/api/v1/pods"))
                there = {pod["metadata"]["uid"] for pod in listed["items"]}
                for uid in self._pods.keys() - there:
                    self._deleted(uid)
                for pod in listed["items"]:
                    self._take(pod)
                query = {
                    "watch": "true",
                    "resourceVersion": listed["metadata"]["resourceVersion"],
                    "timeoutSeconds": "60",
                }
                async with self.api.lines("/api/v1/pods", query, 70) as lines:
                    async for line in lines:
                        event = json.loads(line)
                        if event["type"] == "DELETED":
                            self._deleted(event["object"]["metadata"]["uid"])
                        elif event["type"] in ("ADDED", "MODIFIED"):
                            self._take(event["object"])
                        else:
                            break
            await asyncio.sleep(RETRY_SECONDS)

    def _take(self, pod: dict[str, Any]) -> None:
        if pod["spec"].get("nodeName") not in self._nodes:
            return
        uid = pod["metadata"]["uid"]
        running = self._pods.get(uid)
        if running is None:
            if pod.get("status", {}).get("phase") in ("Succeeded", "Failed") and not pod["metadata"].get(
                "deletionTimestamp"
            ):
                return
            running = self._pods[uid] = RunningPod(self, pod)
            self._tasks[uid] = asyncio.create_task(running.run())
        if pod["metadata"].get("deletionTimestamp"):
            running.grace_seconds = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
            running.leaving.set()

    def _deleted(self, uid: str) -> None:
        """Its object is gone: what still runs of it must not."""
        if running := self._pods.pop(uid, None):
            running.gone.set()
            running.leaving.set()


def _expanded(text: str, variables: dict[str, str]) -> str:
    """Replace $(NAME); $$ is a dollar."""

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return variables.get(match["name"], match[0])

    return re.sub(r"\$\$\((?:[^)]*)\)|\$\((?P<name>[A-Za-z_][A-Za-z0-9_]*)\)", value, text)


def _placed(text: str, mounts: dict[str, str]) -> str:
    """Directories in the place of the paths where volumes are mounted."""
    if not mounts:
        return text
    paths = "|".join(re.escape(path) for path in sorted(mounts, key=len, reverse=True))
    return re.sub(rf"(?<![\w./-])(?:{paths})(?![\w.-])", lambda match: mounts[match[0]], text)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def main(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    environment = {"PATH": os.environ["PATH"], **dict(pair.split("=", 1) for pair in arguments.image_env)}
    async with open_api(arguments.kubeconfig) as api:
        kubelet = Kubelet(api, arguments.nodes, arguments.number, arguments.folder, environment, arguments.start_delay)
        running = asyncio.create_task(kubelet.run())
        await asyncio.wait({running, asyncio.create_task(stopped.wait())}, return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True)
    parser.add_argument("--nodes", required=True, metavar="NAME")
    parser.add_argument("--number", type=int, default=1)
    parser.add_argument("--image-env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--folder", type=Path, required=True)
    asyncio.run(main(parser.parse_args()))
