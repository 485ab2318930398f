"""The scheduler's options, with the only place of their defaults."""

from __future__ import annotations

import msgspec

from rexec.scheduler.fairness_settings import AffinitySettings, FairnessSettings, PackingSettings
from rexec.scheduler.price import PriceSettings


class SchedulerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[scheduler]: how actions are queued, given to workers and kept."""

    default_timeout_seconds: float = 3600.0
    """Timeout of an action that names none (REAPI Action.timeout). Long enough for a link or a test suite."""
    max_timeout_seconds: float = 86400.0
    """The longest timeout that an action may ask for; one that asks for more is refused."""
    keepalive_seconds: float = 30.0
    """A waiting stream carries an Operation at least this often. Proxies drop connections that are silent for 60 s."""
    grace_seconds: float = 10.0
    """How long after a broken stream a worker's leases are kept for it. Longer than a restart of the network, shorter than
    what a user notices."""
    restart_grace_seconds: float = 20.0
    """How long after a restart of the scheduler leases are kept for workers that have not come back yet. They try again after
    growing pauses, so it takes longer than after a broken stream."""
    journal: bool = True
    """Write operations, leases and what was learned to disk, so that a restart loses none of them. They are in
    scheduler.sqlite3 in the state directory. With a store in memory there is nothing to come back to, and no journal."""
    journal_path: str = ""
    """Another file for it. Schedulers that stand by for one another share it, on a volume that locks files (flock) for all of
    them."""
    leadership_seconds: float = 5.0
    """How long the scheduler that leads may be silent before another one that waits takes its place."""
    heartbeat_seconds: float = 5.0
    """How often workers say that they live."""
    max_heartbeats_per_second: float = 10.0
    """Of all workers together. Where there are more workers each says less often that it lives, down to once within
    heartbeat_timeout_seconds, and may be silent for twice as long as it was told to be; one heartbeat costs 0.5 ms of CPU, and a
    connection that breaks is noticed without."""
    heartbeat_timeout_seconds: float = 20.0
    """A worker that has said nothing for so long counts as gone, even though its connection looks open."""
    max_attempts: int = 3
    """Workers that may be lost with an action before it is held to be the cause."""
    exclusion_seconds: float = 3.0
    """How long an action that failed on a worker insists on another one if there is none. An installation of one worker
    must retry too."""
    abandon_seconds: float = 60.0
    """How long an action goes on when no client waits for it: clients reconnect after a broken connection."""
    retain_seconds: float = 300.0
    """How long a completed operation can be asked for; REAPI clients that lost their connection come back to it."""
    max_retained_operations: int = 20_000
    """Completed operations kept at most; the oldest go first."""
    max_retained_bytes: int = 256 << 20
    """Bytes of the responses of completed operations kept at most; the oldest go first."""
    max_queued_operations: int = 50_000
    """Operations that may wait for a worker. Past it clients are told to come back later."""
    max_kinds: int = 1000
    """Different platforms and sizes (cpu, memory, slots) that actions which have not ended may ask for. Each takes memory for
    every worker that fits, and a look at each decision; clients that would add another one are told to come back later."""
    settle_seconds: float = 30.0
    """After the start an unknown platform property is not refused while no worker has attached: they may be on their way."""
    known_properties: tuple[str, ...] = ("OSFamily", "ISA", "Arch", "cpu", "memory", "Pool", "gpu")
    """Names of platform properties that an action may ask for although no worker has offered them so far, such as those
    of a pool that has no worker now."""
    ignored_properties: tuple[str, ...] = ()
    """Names of platform properties that are taken off actions, for clients that ask for what does not matter here."""
    max_log_readers: int = 500
    """The most readers of the output of running actions. Each may take 256 KiB of memory here."""
    answer_seconds: float = 60.0
    """How soon a worker must say anything of a lease that it was sent. One that does not is taken to be broken although its
    connection lives, and the action runs elsewhere."""
    staging_seconds: float = 1800.0
    """How long a worker may fetch inputs with a slot free for the action, and how long it may upload outputs."""
    overdue_seconds: float = 120.0
    """How long after its timeout a command may still be said to run. Workers stop commands at their timeout."""
    hedging: bool = True
    """Whether an action that runs for unusually long is run a second time on a worker that is idle. The first result
    counts. Never done with actions that are not to be cached."""
    hedge_factor: float = 1.5
    """How many times the 95th percentile of its class, which takes 20 runs to know, an action may run before that."""
    hedge_min_seconds: float = 5.0
    """How long it may run at least."""
    hedge_share: float = 0.05
    """The most second runs, as a share of all leases; one is always allowed."""
    quarantine_failures: int = 3
    """Different actions that must fail on a worker in a row, through no fault of their own, before it gets no more for a
    while. Workers are known by their names."""
    quarantine_seconds: float = 5.0
    """How long that is. Then the worker gets one action on trial; each trial that fails doubles the time."""
    quarantine_max_seconds: float = 300.0
    """The longest that it becomes. A worker that no other can stand in for gets its next trial after `quarantine_seconds`
    whatever happens."""
    contested_seconds: float = 60.0
    """When two workers have taken the same name from each other twice within this time, the next one is refused."""
    unserved_seconds: float = 5.0
    """Actions that wait for so long without any worker that fits are told of in the log, with the reason."""
    long_wait_seconds: float = 300.0
    """Actions that wait for so long although workers fit are told of in the log, with the reason, and again after as long."""
    unserved_again_seconds: float = 60.0
    """How often that is said again for the same requirement."""
    max_slots: int = 4096
    """The most slots that a worker may claim."""
    max_prefetched_leases: int = 64
    """The most leases beyond its slots that a worker may be given, whatever credit it grants."""
    inputs_known_seconds: float = 60.0
    """How long a subtree that was wholly in the store is taken to be there still. The next action of a build then costs
    only the directories that changed; what is evicted meanwhile is found by the worker."""
    max_input_directories: int = 200_000
    """The most distinct directories in one input root."""
    inline_bytes: int = 1 << 20
    """The most bytes of stdout, stderr and output files together that one ExecuteResponse carries inline; the message has
    to stay below 4 MiB with its metadata."""
    price: PriceSettings = PriceSettings()
    fairness: FairnessSettings = FairnessSettings()
    packing: PackingSettings = PackingSettings()
    affinity: AffinitySettings = AffinitySettings()

    def heartbeat_interval_seconds(self, workers: int) -> float:
        """How often each of so many workers says that it lives."""
        wanted_seconds = max(self.heartbeat_seconds, workers / self.max_heartbeats_per_second)
        return min(wanted_seconds, self.heartbeat_timeout_seconds)

    def silence_seconds(self, interval_seconds: float) -> float:
        """After what silence a worker counts as gone that was told to say so often that it lives."""
        if interval_seconds <= self.heartbeat_seconds:
            return self.heartbeat_timeout_seconds
        return max(self.heartbeat_timeout_seconds, 2 * interval_seconds)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        for name in ("default_timeout_seconds", "max_timeout_seconds", "keepalive_seconds", "heartbeat_seconds",
                     "heartbeat_timeout_seconds", "leadership_seconds", "long_wait_seconds",
                     "max_heartbeats_per_second"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("answer_seconds", "staging_seconds", "overdue_seconds", "hedge_factor", "quarantine_seconds",
                     "quarantine_max_seconds"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name in ("grace_seconds", "restart_grace_seconds", "exclusion_seconds", "abandon_seconds", "settle_seconds",
                     "inputs_known_seconds",
                     "max_prefetched_leases", "inline_bytes", "unserved_seconds", "unserved_again_seconds", "hedge_min_seconds",
                     "hedge_share", "contested_seconds"):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("max_attempts", "max_retained_operations", "max_retained_bytes", "max_queued_operations", "max_kinds",
                     "max_slots", "max_input_directories", "max_log_readers", "quarantine_failures"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.default_timeout_seconds > self.max_timeout_seconds:
            raise ValueError(
                f"default_timeout_seconds is {self.default_timeout_seconds}, expected at most"
                f" max_timeout_seconds ({self.max_timeout_seconds})"
            )
        if self.quarantine_max_seconds < self.quarantine_seconds:
            raise ValueError(
                f"quarantine_max_seconds is {self.quarantine_max_seconds}, expected at least quarantine_seconds"
                f" ({self.quarantine_seconds})"
            )
        if self.retain_seconds < 60:
            # REAPI clients reconnect to completed operations; proxies take up to a minute to let them.
            raise ValueError(f"retain_seconds is {self.retain_seconds}, expected 60 or more")
        if self.keepalive_seconds > 60:
            raise ValueError(f"keepalive_seconds is {self.keepalive_seconds}, expected at most 60")
        if self.heartbeat_timeout_seconds <= self.heartbeat_seconds:
            raise ValueError(
                f"heartbeat_timeout_seconds is {self.heartbeat_timeout_seconds}, expected more than"
                f" heartbeat_seconds ({self.heartbeat_seconds})"
            )
