"""Any order of events keeps the queue consistent, and everyone who waits is served in the end."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cas.digest import Digest
from cas.errors import AlreadyExists, StatusError
from rexec.scheduler import events as e
from rexec.scheduler.fairness_settings import (
    AffinitySettings,
    FairnessSettings,
    OwnShareSettings,
    PackingSettings,
    ShareSettings,
)
from rexec.scheduler.settings import SchedulerSettings
from rexec.scheduler.task import Candidate, Demand, Failure, HeldLease, Hold, Owner, Stage, Usage
from tests.scheduler.rules import LINUX, Driver, of_kind

PLATFORMS = (frozenset[tuple[str, str]](), LINUX, LINUX | {("gpu", "a100")})
WORKERS = ("w1", "w2", "w3")
GIB = 1 << 30
OWNERS = [
    Owner(tenant, user, invocation)
    for tenant, user, invocation in (
        ("red", "alice", "1"), ("red", "alice", "2"), ("red", "bob", "1"), ("blue", "alice", "1"), ("blue", "carol", ""),
    )
]  # fmt: skip
DEMANDS = [
    *[Demand()] * 4, Demand(2), Demand(3), Demand(1, cpu_millis=3000), Demand(1, 500, 5 * GIB), Demand(1, 0, 6 * GIB),
    Demand(9), Demand(1, 9000),
]  # fmt: skip
FAIRNESS = FairnessSettings(
    tenant=ShareSettings(max_running=6),
    user=ShareSettings(max_running=4, max_queued=15),
    invocation=ShareSettings(max_running=3),
    tenants={"blue": OwnShareSettings(weight=3.0, max_running=2)},
    users={"bob": OwnShareSettings(weight=0.5, max_running=1, max_queued=4)},
)


class Machine(RuleBasedStateMachine):
    """Clients and workers that do whatever the protocol allows, and some things that it does not.

    The machine plays the workers' side on its own books: what each has been given and has not ended. `Driver` checks the
    queue's invariants after every event.
    """

    @initialize()
    def start(self) -> None:
        self.driver = Driver(
            SchedulerSettings(
                max_queued_operations=30, max_retained_operations=50, max_attempts=2, quarantine_failures=2,
                hedge_min_seconds=0.5, staging_seconds=90, fairness=FAIRNESS,
                packing=PackingSettings(reserve_after_seconds=1.0, reserve_at_most_seconds=30.0),
                affinity=AffinitySettings(look_ahead=3, max_passed_over=1),
            )
        )  # fmt: skip
        for _ in range(20):
            for kind, usage in (("usual", Usage(1.0)), ("heavy", Usage(30.0, 4 * GIB))):
                self.driver.queue.state.statistics.learn(Candidate("", Digest.of(b""), action_class=kind), usage)
        self.held: dict[str, dict[str, int]] = {}
        """Lease id to epoch, by session."""
        self.old: list[HeldLease] = []
        """Leases that have ended or were revoked, to be replayed."""
        self.completed: dict[str, int] = {}
        """How often each task completed."""
        self.stages: dict[str, Stage] = {}
        self.waiters: list[str] = []
        self.sessions = 0
        self.read = 0

    def do(self, event: e.Event) -> None:
        self.driver.do(event)
        self.carry_out()

    def carry_out(self) -> None:
        """Play the workers: take leases, let go of revoked ones only when told to by a rule."""
        for effect in self.driver.effects[self.read :]:
            match effect:
                case e.LeaseGranted(worker_id, _task, lease_id, epoch):
                    self.held.setdefault(worker_id, {})[lease_id] = epoch
                case e.WorkerGone(worker_id):
                    self.old += [HeldLease(*lease) for lease in self.held.pop(worker_id, {}).items()]
                case e.TaskCompleted(task_id):
                    self.completed[task_id] = self.completed.get(task_id, 0) + 1
        self.read = len(self.driver.effects)

    def connected(self) -> list[str]:
        return [worker.worker_id for worker in self.driver.queue.fleet.workers.values() if worker.connected]

    def holding(self) -> list[tuple[str, HeldLease]]:
        alive = set(self.connected())
        return [
            (worker_id, HeldLease(lease_id, epoch))
            for worker_id, leases in self.held.items()
            if worker_id in alive
            for lease_id, epoch in leases.items()
        ]

    # Clients

    @rule(
        action=st.sampled_from(["a", "b", "c", "d", ""]),
        priority=st.integers(-2, 2),
        pairs=st.sampled_from(PLATFORMS),
        do_not_cache=st.booleans(),
        watched=st.booleans(),
        owner=st.sampled_from(OWNERS),
        demand=st.sampled_from(DEMANDS),
        kind=st.sampled_from(["usual", "heavy", ""]),
        affinity=st.lists(st.sampled_from("xyz"), unique=True, max_size=2),
    )
    def submit(
        self,
        action: str,
        priority: int,
        pairs: frozenset[tuple[str, str]],
        do_not_cache: bool,
        watched: bool,
        owner: Owner,
        demand: Demand,
        kind: str,
        affinity: list[str],
    ) -> None:
        if action:  # an equal action has an equal platform
            pairs, demand, kind = PLATFORMS[ord(action) % 3], DEMANDS[ord(action) % 5], "usual"
        try:
            name = self.driver.submit(
                action, priority=priority, pairs=pairs, do_not_cache=do_not_cache, watched=watched,
                action_class=kind, timeout_seconds=60, owner=owner, demand=demand, affinity=affinity,
            )  # fmt: skip
        except StatusError:
            return
        if watched:
            self.waiters.append(name)
        self.carry_out()

    @precondition(lambda self: self.driver.queue.operations)
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.driver.queue.operations)))
        self.do(e.WaiterJoined(name))
        self.waiters.append(name)

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiters)))
        self.waiters.remove(name)
        self.do(e.WaiterLeft(name))

    @precondition(lambda self: self.driver.queue.operations)
    @rule(data=st.data(), forget=st.booleans())
    def cancel(self, data: st.DataObject, forget: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.driver.queue.operations)))
        self.do(e.Forget(name) if forget else e.Cancel(name))
        if forget and name not in self.driver.queue.operations:
            self.stages.pop(name, None)

    # Workers

    @rule(
        name=st.sampled_from(WORKERS),
        slots=st.integers(1, 3),
        extra=st.integers(0, 2),
        pairs=st.sampled_from(PLATFORMS[1:]),
        figures=st.sampled_from([(0, 0), (4000, 8 * GIB), (3500, 0), (10_000, 16 * GIB)]),
    )
    def attach_new(
        self, name: str, slots: int, extra: int, pairs: frozenset[tuple[str, str]], figures: tuple[int, int]
    ) -> None:
        self.sessions += 1
        try:
            self.driver.attach(
                name, session=f"s{self.sessions}", slots=slots, credit=slots + extra, pairs=pairs,
                cpu_millis=figures[0], memory_bytes=figures[1],
            )  # fmt: skip
        except AlreadyExists:
            assert self.driver.queue.fleet.by_name[name].connected
        self.carry_out()

    @precondition(lambda self: self.driver.queue.fleet.workers)
    @rule(data=st.data(), keep=st.integers(0, 9))
    def attach_again(self, data: st.DataObject, keep: int) -> None:
        worker_id = data.draw(st.sampled_from(sorted(self.driver.queue.fleet.workers)))
        worker = self.driver.queue.fleet.workers[worker_id]
        held = [HeldLease(*lease) for lease in self.held.get(worker_id, {}).items()][:keep]
        self.held[worker_id] = {}
        self.do(e.WorkerAttached(worker_id, worker.name, worker.slots, worker.offer, tuple(held)))
        welcome = of_kind(self.driver.effects, e.WorkerWelcomed)[-1]
        assert set(welcome.resumed) | set(welcome.unknown) == set(held)
        given = {effect.lease_id for effect in of_kind(self.driver.effects[self.read :], e.LeaseGranted)}
        settling = {key for key, lease in worker.leases.items() if lease.hold is Hold.SETTLING}
        assert set(worker.leases) <= {lease.lease_id for lease in welcome.resumed} | given | settling
        self.held[worker_id] |= {lease.lease_id: lease.epoch for lease in welcome.resumed}
        self.old += welcome.unknown

    @rule()
    def answer_or_be_silent(self) -> None:
        """Workers say nothing of the leases that they get from now on, or do so again."""
        self.driver.workers_answer = not self.driver.workers_answer

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), leases=st.integers(0, 4))
    def credit(self, data: st.DataObject, leases: int) -> None:
        self.do(e.Credit(data.draw(st.sampled_from(sorted(self.connected()))), leases))

    @precondition(lambda self: self.connected())
    @rule(data=st.data(), drain=st.booleans())
    def detach(self, data: st.DataObject, drain: bool) -> None:
        worker_id = data.draw(st.sampled_from(sorted(self.connected())))
        if drain:
            self.do(e.Draining(worker_id))
        self.do(e.WorkerDetached(worker_id))

    @precondition(lambda self: self.driver.queue.fleet.workers)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        workers = self.driver.queue.fleet.workers
        worker_id = data.draw(st.sampled_from(sorted(workers)))
        connected = workers[worker_id].connected
        self.do(e.WorkerEnded(worker_id))
        assert (worker_id in workers) is connected

    @precondition(lambda self: self.holding())
    @rule(data=st.data(), running=st.booleans(), delivering=st.booleans(), report=st.booleans())
    def progress(self, data: st.DataObject, running: bool, delivering: bool, report: bool) -> None:
        worker_id, lease = data.draw(st.sampled_from(self.holding()))
        self.do(
            e.Progress(worker_id, lease.lease_id, lease.epoch, running, delivering=running and delivering)
        )  # fmt: skip
        if report:
            self.do(e.Reported(worker_id, lease.lease_id, lease.epoch))

    @precondition(lambda self: self.holding())
    @rule(data=st.data(), failure=st.sampled_from([*Failure, Failure.INFRASTRUCTURE]))
    def finish(self, data: st.DataObject, failure: Failure) -> None:
        worker_id, lease = data.draw(st.sampled_from(self.holding()))
        del self.held[worker_id][lease.lease_id]
        self.old.append(lease)
        self.do(e.Finished(worker_id, lease.lease_id, lease.epoch, failure))

    @precondition(lambda self: self.old and self.connected())
    @rule(data=st.data(), failure=st.sampled_from(Failure))
    def replay(self, data: st.DataObject, failure: Failure) -> None:
        """A lease that is over, or somebody else's: nothing may come of it."""
        lease = data.draw(st.sampled_from(self.old))
        worker_id = data.draw(st.sampled_from(sorted(self.connected())))
        if lease.lease_id in self.driver.queue.leases:
            return  # its report is still being checked
        before = sum(self.completed.values())
        self.do(e.Finished(worker_id, lease.lease_id, lease.epoch, failure))
        self.do(e.Progress(worker_id, lease.lease_id, lease.epoch, running=True))
        assert sum(self.completed.values()) == before

    @rule(seconds=st.sampled_from([0.5, 2.0, 5.0, 20.0, 70.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.driver.pass_time(seconds)
        self.carry_out()

    @invariant()
    def tasks_complete_once(self) -> None:
        assert all(times == 1 for times in self.completed.values())

    @invariant()
    def stages_never_go_back_from_completed(self) -> None:
        for name, operation in self.driver.queue.operations.items():
            assert self.stages.get(name) is not Stage.COMPLETED or operation.stage is Stage.COMPLETED
            self.stages[name] = operation.stage

    @invariant()
    def everyone_who_waits_has_a_reason(self) -> None:
        for task in self.driver.queue.tasks.values():
            assert (task.stage is Stage.QUEUED) == bool(self.driver.queue.reason(task))

    def teardown(self) -> None:
        """However it stands, a good worker for everything ends all of it."""
        driver = self.driver
        everything = PLATFORMS[2]
        worker_id = driver.attach(
            "good", session="good", slots=9, pairs=everything, cpu_millis=18_000, memory_bytes=90 * GIB
        )  # fmt: skip
        for _ in range(200):
            if not driver.queue.tasks:
                break
            for lease in list(driver.queue.leases.values()):  # also reports of workers that have gone since
                driver.finish(lease.worker.worker_id, HeldLease(lease.lease_id, lease.epoch))
            driver.credit(worker_id, 9)
            driver.pass_time(driver.settings.exclusion_seconds)
        assert not driver.queue.tasks
        assert driver.queue.queued_operations == 0
        for lease in list(driver.queue.leases.values()):
            driver.finish(lease.worker.worker_id, HeldLease(lease.lease_id, lease.epoch))
        shares = driver.queue.fleet.shares
        assert (len(shares), shares.root.used_millis) == (0, 0)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
