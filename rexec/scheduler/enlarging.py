"""An action was killed because it took more memory than it was given: it gets more, once, if there is more anywhere.

How much it would have taken is not known, only what it had when it was killed, which is hardly more than it was given. So it
gets GROWTH times what it was given, and twice what it had at least, rounded up so that not each such action has a need of its
own; or all that the largest worker has if that is less: another kill would cost more than a few idle slots. That is no attempt,
because nothing was wrong with the worker. An action that is killed again has failed, also if the scheduler was another one
before: what it needs is written down with the task (rexec/scheduler/rows.py).
"""

from __future__ import annotations

from typing import Final

from rexec.scheduler.need import need_of, stepped
from rexec.scheduler.packing import use_on
from rexec.scheduler.state import QueueState
from rexec.scheduler.task import Lease, Standing

GROWTH: Final = 4


def enlarged(state: QueueState, lease: Lease, exceeded_memory_bytes: int) -> bool:
    """Have the lease's task need more memory from now on; False, and nothing done, if it did not exceed what
    it was given, or had more before, or nobody has more.

    A task with a second lease, which may yet end well, is left as it is: that decides.
    """
    if not exceeded_memory_bytes:
        return False
    task = lease.task
    if task.lease is not None and task.hedge is not None:
        return True
    given = use_on(lease.worker.offer, lease.worker.slots, task.need)
    given_bytes = given.memory_bytes if given is not None else 0
    most_bytes = max(
        (
            worker.offer.memory_bytes
            for worker in state.fleet.workers.values()
            if worker.connected
            and not worker.draining
            and worker.standing is not Standing.QUARANTINED
            and worker.slots >= task.need.slots
            and worker.offer.fits(task.candidate.requirement)
        ),
        default=0,
    )
    if task.enlarged or not given_bytes or most_bytes <= max(given_bytes, exceeded_memory_bytes):
        return False
    task.enlarged = True
    wanted_bytes = min(stepped(max(given_bytes * GROWTH, exceeded_memory_bytes * 2)), most_bytes)
    state.set_need(task, need_of(task.need.slots, task.need.cpu_millis, wanted_bytes))
    return True
