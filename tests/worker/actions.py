"""A worker without a scheduler: actions are put into a store in memory and run as real processes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import duration_pb2

from cas.digest import Digest, DigestFunction
from cas.memory import MemoryStore
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.scheduler.v1 import record_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.worker.action import ActionContext, LeasedAction
from rexec.worker.blob_files import BlobFiles
from rexec.worker.files import FileCache
from rexec.worker.isolations import isolation_of
from rexec.worker.kept_rooms import KeptRooms
from rexec.worker.outage import Outage
from rexec.worker.processes import Processes
from rexec.worker.settings import WorkerSettings
from rexec.worker.slots import Slots
from rexec.worker.start import runner_of
from rexec.worker.workspace import Workspace


@dataclass(frozen=True)
class Link:
    """A symlink in an input tree."""

    target: str


@dataclass(frozen=True)
class File:
    """A file in an input tree, with more than bytes to it."""

    data: bytes
    is_executable: bool = False
    properties: re_pb2.NodeProperties | None = None
    in_store: bool = True


@dataclass
class Inputs:
    """Puts trees into a store: nested dictionaries of bytes, File, Link and dictionaries."""

    store: MemoryStore
    function: DigestFunction = DigestFunction.SHA256

    async def put(self, data: bytes) -> Digest:
        digest = Digest.of(data, self.function)
        assert not await self.store.write_many([(digest, data)])
        return digest

    async def tree(self, content: Mapping[str, Any], properties: re_pb2.NodeProperties | None = None) -> Digest:
        directory = re_pb2.Directory(node_properties=properties)
        for name, node in sorted(content.items()):
            match node:
                case bytes():
                    directory.files.add(name=name, digest=(await self.put(node)).to_proto())
                case File():
                    digest = Digest.of(node.data, self.function)
                    if node.in_store:
                        await self.put(node.data)
                    directory.files.add(
                        name=name,
                        digest=digest.to_proto(),
                        is_executable=node.is_executable,
                        node_properties=node.properties,
                    )
                case Link():
                    directory.symlinks.add(name=name, target=node.target)
                case Digest():
                    directory.directories.add(name=name, digest=node.to_proto())
                case _:
                    directory.directories.add(name=name, digest=(await self.tree(node)).to_proto())
        return await self.put(directory.SerializeToString(deterministic=True))


@dataclass
class Worker:
    """Runs one action after the other."""

    context: ActionContext
    inputs: Inputs
    work_dir: Path
    phases: list[int] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def store(self) -> MemoryStore:
        return self.inputs.store

    async def lease(
        self,
        *arguments: str,
        inputs: Mapping[str, Any] | Digest | None = None,
        timeout_seconds: float = 60,
        env: Mapping[str, str] | None = None,
        demand: record_pb2.Demand | None = None,
        **command: Any,
    ) -> worker_pb2.Lease:
        root = inputs if isinstance(inputs, Digest) else await self.inputs.tree(inputs or {})
        message = re_pb2.Command(arguments=arguments, **command)
        for name, value in (env or {}).items():
            message.environment_variables.add(name=name, value=value)
        timeout = duration_pb2.Duration()
        timeout.FromNanoseconds(int(timeout_seconds * 1e9))
        return worker_pb2.Lease(
            lease_id=f"lease-{next(self._numbers)}",
            epoch=1,
            digest_function=self.inputs.function.value,
            action=re_pb2.Action(input_root_digest=root.to_proto()),
            command=message,
            timeout=timeout,
            demand=demand,
        )

    async def run(self, *arguments: str, **options: Any) -> worker_pb2.Finished:
        lease = await self.lease(*arguments, **options)
        return await LeasedAction(self.context, lease, lambda phase, _metadata: self.phases.append(phase)).run()

    async def sh(self, script: str, **options: Any) -> worker_pb2.Finished:
        return await self.run("/bin/sh", "-c", script, **options)

    async def read(self, digest: re_pb2.Digest) -> bytes:
        """A blob that a result names."""
        if not digest.size_bytes:
            return b""
        key = Digest.from_proto(digest, self.inputs.function)
        async with self.store.open(key) as chunks:
            return b"".join([chunk async for chunk in chunks])

    async def stdout(self, finished: worker_pb2.Finished) -> str:
        assert finished.status.code == 0, finished
        return (await self.read(finished.action_result.stdout_digest)).decode()

    async def outputs(self, finished: worker_pb2.Finished) -> dict[str, bytes]:
        return {file.path: await self.read(file.digest) for file in finished.action_result.output_files}


def settings_for(work_dir: Path, **changes: Any) -> WorkerSettings:
    return WorkerSettings(**{"work_dir": str(work_dir), "slots": 2, "name": "w", "kill_grace_seconds": 0.2, **changes})


async def make_context(work_dir: Path, store: MemoryStore, **changes: Any) -> ActionContext:
    settings = settings_for(work_dir, **changes)
    isolation = isolation_of(settings)
    isolation.require()
    workspace = Workspace(settings.work_dir)
    workspace.claim()
    isolation.prepare()
    files = FileCache(BlobFiles(f"{workspace.path}/cache"), settings.cache_max_bytes)
    await files.adopt()
    processes = Processes()
    processes.adopt_orphans()
    return ActionContext(
        settings=settings,
        workspace=workspace,
        files=files,
        runner=runner_of(settings, processes, workspace),
        memory_bytes=settings.offered_resources().get("memory", 0),
        slots=Slots(settings.slots),
        isolation=isolation,
        store_of=lambda _instance: store,
        outage=Outage(0.0),
        kept=KeptRooms(workspace, settings.max_kept_rooms),
    )
