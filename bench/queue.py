"""What the rules of the queue cost: CPU for each action from its submission to its end, without services, network or journal.

Many workers are busy and many actions wait; for each one that ends another one is submitted, so that every step decides who
gets the slot. The actions belong to one invocation, to many of one user, or to many users.

    python -m bench.queue [--workers 1000] [--waiting 10000] [--actions 20000]
"""

from __future__ import annotations

import argparse
import gc
import time
from collections import deque
from dataclasses import dataclass, field

from cas.digest import Digest
from rexec.scheduler import events as e
from rexec.scheduler.platform import Offer, Requirement
from rexec.scheduler.queue import Queue
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Failure, Outcome, Owner

LINUX = frozenset({("OSFamily", "linux")})
SLOTS = 4


@dataclass(slots=True)
class Bench:
    """One queue, and what its workers hold."""

    invocations: int
    users: int = 1
    demands: tuple[Demand, ...] = (Demand(),)
    affinity: bool = False
    queue: Queue = field(default_factory=lambda: Queue(SchedulerSettings(max_queued_operations=1_000_000), 0.0))
    held: deque[e.LeaseGranted] = field(default_factory=deque)
    now: float = 0.0
    names: int = 0

    def do(self, event: e.Event) -> None:
        for effect in self.queue.apply(event, self.now):
            if isinstance(effect, e.LeaseGranted):
                self.held.append(effect)

    def attach(self, workers: int) -> None:
        offer = Offer(LINUX, frozenset(), SLOTS * 1000, SLOTS << 30)
        for number in range(workers):
            self.do(e.WorkerAttached(f"s{number}", f"w{number}", SLOTS, offer))
            self.do(e.Credit(f"s{number}", SLOTS))

    def submit(self, owner: Owner | None = None) -> None:
        self.names += 1
        number = self.names
        owner = owner or Owner("tenant", f"user-{number % self.users}", f"invocation-{number % self.invocations}")
        parts = (f"toolchain-{number % 3}", *(f"part-{(number + part) % 50}" for part in range(7)))
        candidate = Candidate(
            "",
            Digest.of(number.to_bytes(8, "little")),
            Requirement("", LINUX),
            owner=owner,
            demand=self.demands[number % len(self.demands)],
            action_class="Bench",
            affinity=parts if self.affinity else (),
        )
        self.do(e.Submit(f"operations/{number}", f"task-{number}", candidate))
        self.do(e.WaiterJoined(f"operations/{number}"))

    def end_one(self) -> None:
        lease = self.held.popleft()
        self.do(e.Progress(lease.worker_id, lease.lease_id, lease.epoch, running=True))
        self.do(e.Reported(lease.worker_id, lease.lease_id, lease.epoch))
        # The worker counts before it hears of what it has been given meanwhile.
        self.do(e.Credit(lease.worker_id, self.queue.fleet.workers[lease.worker_id].credit + 1))
        self.do(e.Finished(lease.worker_id, lease.lease_id, lease.epoch, Failure.NONE, Outcome(response="done")))


def measure(bench: Bench, workers: int, waiting: int, actions: int) -> float:
    """Seconds of CPU for each action."""
    bench.attach(workers)
    for _ in range(workers * SLOTS + waiting):
        bench.submit()
    gc.collect()
    gc.freeze()
    start = time.process_time()
    for _ in range(actions):
        bench.now += 0.001
        bench.end_one()
        bench.submit()
    seconds = (time.process_time() - start) / actions
    gc.unfreeze()
    return seconds


def delay(waiting: int, workers: int, small: Owner) -> tuple[float, float]:
    """Simulated seconds until the first and the last of 10 actions have a worker that come when `waiting` others wait, if every
    action takes a second."""
    bench = Bench(1)
    bench.attach(workers)
    for _ in range(waiting):
        bench.submit()
    asked_at = bench.now = 10.25
    operations = [f"operations/{bench.names + number}" for number in range(1, 11)]
    for _ in operations:
        bench.submit(small)
    served: list[float] = []
    rounds = deque([deque(bench.held)])
    while len(served) < len(operations):
        bench.now += 0.75 if bench.now == asked_at else 1.0
        for _ in range(len(rounds.popleft())):
            bench.end_one()
        rounds.append(deque(bench.held))
        running = {lease.task.task_id for lease in bench.queue.leases.values()}
        served += [bench.now - asked_at for name in operations if bench.queue.operations[name].task.task_id in running]
    return served[0], served[-1]


def main() -> None:
    """Print one line for each kind of load, and then how long a small build waits behind a large one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--actions", type=int, default=20_000)
    chosen = parser.parse_args()
    mixed = (Demand(), Demand(), Demand(), Demand(2), Demand(1, 3000))
    loads = {
        "1 invocation": Bench(1),
        "1,000 invocations of one user": Bench(1000),
        "an invocation for each action": Bench(1 << 60),
        "1,000 invocations of 100 users": Bench(1000, 100),
        "1 invocation, 5 needs": Bench(1, demands=mixed),
        "1 invocation, affinity": Bench(1, affinity=True),
        "1,000 invocations, affinity": Bench(1000, affinity=True),
    }
    print(f"{chosen.workers} workers of {SLOTS} slots, {chosen.waiting} actions wait: CPU for each action")
    for name, bench in loads.items():
        seconds = measure(bench, chosen.workers, chosen.waiting, chosen.actions)
        print(f"{seconds * 1e6:8.1f} us  {name}")
    print(
        "10 actions come when 100,000 of a second each wait for 100 workers of 4 slots: seconds until the first and the last run"
    )
    for who, small in (
        ("another invocation", Owner("tenant", "user-0", "small")),
        ("another user", Owner("tenant", "small", "")),
        ("another tenant", Owner("small", "", "")),
    ):
        first, last = delay(100_000, 100, small)
        print(f"{first:8.2f} s {last:8.2f} s  of {who}")


if __name__ == "__main__":
    main()
