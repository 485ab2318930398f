"""The roles of rexec as processes of their own, seen as one server: a scheduler, and frontends that share its clients' port."""

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from integration.process import Process
from integration.server import Server, answers_capabilities, free_port
from integration.waiting import wait_until

FRONTENDS = 2
READY_SECONDS = 60.0


class RolesApart(Server):
    """A `rexec scheduler` with `rexec frontend` before it. What happens to the server happens to all of them at once."""

    def __init__(
        self, folder: Path, rexec: Sequence[str], scheduler_flags: Sequence[str], frontend_flags: Sequence[str]
    ) -> None:
        """`rexec` is the command; the flags are beside those that say where everything is. Raises AssertionError."""
        self._rexec = tuple(rexec)
        self._scheduler_flags = tuple(scheduler_flags)
        self._frontend_flags = tuple(frontend_flags)
        self._scheduler_address = f"127.0.0.1:{free_port()}"
        self._metrics = [f"127.0.0.1:{free_port()}" for _ in range(FRONTENDS)]
        self.frontends: list[Process] = []
        super().__init__(folder, slots=0)

    def kill(self) -> None:
        """SIGKILL to scheduler and frontends."""
        for frontend in self.frontends:
            frontend.kill()
        super().kill()

    def close(self) -> None:
        """End everything this object started, whatever state it is in."""
        for frontend in self.frontends:
            if frontend.is_running():
                frontend.stop()
        super().close()

    def pids(self) -> list[int]:
        """Of all processes but the workers."""
        return [self.process.pid, *(frontend.pid for frontend in self.frontends)]

    def _start(self) -> Process:
        log = self.folder / "scheduler.log"
        place = ("--listen", self._scheduler_address, "--state-dir", str(self.folder / "state"))
        scheduler = Process((*self._rexec, "scheduler", *place, *self._scheduler_flags), log)
        self.frontends = []
        try:
            for number, metrics in enumerate(self._metrics):
                place = ("--listen", self.address, "--scheduler", f"grpc://{self._scheduler_address}")
                command = (*self._rexec, "frontend", *place, "--metrics-listen", metrics, *self._frontend_flags)
                self.frontends.append(Process(command, self.folder / f"frontend-{number}.log"))
            wait_until(lambda: self._answers(scheduler), f"the frontends on {self.address} to answer", READY_SECONDS)
        except BaseException:
            for process in (*self.frontends, scheduler):
                process.kill()
            raise
        return scheduler

    def _answers(self, scheduler: Process) -> bool:
        for process in (scheduler, *self.frontends):
            process.expect_running()
        return all(map(_is_ready, self._metrics)) and answers_capabilities(self.address)


def _is_ready(metrics: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{metrics}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def running_apart(
    folder: Path, rexec: Sequence[str], scheduler_flags: Sequence[str], frontend_flags: Sequence[str]
) -> Iterator[RolesApart]:
    """The roles, gone with all they started at the end of the block."""
    roles = RolesApart(folder, rexec, scheduler_flags, frontend_flags)
    try:
        yield roles
    finally:
        roles.close()
