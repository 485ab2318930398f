"""Tasks that wait for the same workers, in the order in which their owners are entitled to one.

A line is a tree beside the one of the shares: a branch for each tenant, user and invocation of whom something waits in this
line. Each branch keeps a heap of the branches below it by the shares of their nodes, and the last one a heap of tasks. Entries
are left where they are when a share changes: one that is too small is put right when it comes to the top, one that is too
large is pushed anew. So a decision costs the logarithm of the number of those that compete, whoever they are.

A task that several owners wait for stands in the branches of all of them; whoever's turn comes first gets it.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rexec.scheduler.shares import Level, Node, ShareKey
from rexec.scheduler.task import Task

if TYPE_CHECKING:
    from rexec.scheduler.fit import Fit

Order = tuple[int, int, int]
"""Priority, how long it is expected to take (the longest first, in powers of two), arrival."""


class Place:
    """A task's place in a line; the task's `place` is the same object as long as it stands there."""

    __slots__ = ("line", "order", "passed_over", "stands", "task")

    def __init__(self, task: Task, line: Line) -> None:
        self.task = task
        self.line = line
        # What nothing is known of counts as a second.
        self.order: Order = (task.priority, -math.frexp(task.expected_seconds or 0.75)[1], task.arrival)
        self.stands: list[Branch] = []
        """The invocations' branches that it is in: one for each owner."""
        self.passed_over = 0
        """How often another one was preferred for its inputs."""


class Branch:
    """What waits in one line for one tenant, user or invocation."""

    __slots__ = ("children", "entry", "heap", "line", "node", "parent", "tasks", "waiting")

    def __init__(self, node: Node, line: Line, parent: Branch | None) -> None:
        self.node = node
        self.line = line
        self.parent = parent
        self.children: dict[Node, Branch] = {}
        self.heap: list[tuple[ShareKey, Branch]] = []
        """Of the children; more than one entry of a child may be left over, and only its `entry` counts."""
        self.entry: tuple[ShareKey, Branch] | None = None
        """Where it stands in the heap above; None while nothing can be had of it."""
        self.tasks: list[tuple[Order, int, Place]] = []
        """Of an invocation: a heap, in which only places that their tasks still have count."""
        self.waiting = 0
        """How many places count."""

    def __lt__(self, other: Branch) -> bool:
        return False  # entries with equal keys are of the same branch

    def wake(self) -> None:
        """Its share is smaller than before, or something new waits in it: it may be served."""
        parent = self.parent
        if parent is None:
            return
        entry = self.entry
        if entry is None or entry[0] > self.node.key:
            self.entry = entry = (self.node.key, self)
            if len(parent.children) == 1:
                parent.heap = [entry]
                return
            heapq.heappush(parent.heap, entry)
            if len(parent.heap) > 2 * len(parent.children) + 64:
                parent.heap = [kept for kept in parent.heap if kept[1].entry is kept]
                heapq.heapify(parent.heap)

    def top(self) -> Branch | None:
        """The child with the smallest share that is below its limit."""
        if len(self.children) == 1:
            (only,) = self.children.values()
            if only.node.full:
                only.entry = None
            return only if only.entry is not None else None
        heap = self.heap
        while heap:
            entry = heap[0]
            child = entry[1]
            if child.entry is not entry:
                heapq.heappop(heap)
            elif child.node.full:
                heapq.heappop(heap)
                child.entry = None
            elif entry[0] < child.node.key:
                child.entry = entry = (child.node.key, child)
                heapq.heapreplace(heap, entry)
            else:
                return child
        return None

    def head(self) -> Place | None:
        """The first task of an invocation."""
        tasks = self.tasks
        while tasks:
            place = tasks[0][2]
            if place.task.place is place:
                return place
            heapq.heappop(tasks)
        return None

    def ahead(self, many: int) -> list[Place]:
        """The first task of an invocation, and up to `many` - 1 more of the next ones that have the same priority."""
        first = self.head()
        if first is None:
            return []
        near = [place for _order, _serial, place in self.tasks[: 2 * many] if place.task.place is place]
        return [place for place in near if place.order[0] == first.order[0]][:many]


class Line:
    """Tasks that the same workers can take."""

    def __init__(self, shares_root: Node, fit: Fit, excluded: frozenset[str]) -> None:
        self.fit = fit
        self.excluded = excluded
        """Names of workers that the tasks must not go to."""
        self.members: dict[Task, None] = {}
        """The tasks in the line, in the order in which they came."""
        self.root = Branch(shares_root, self, None)

    def __len__(self) -> int:
        return len(self.members)

    def join(self, place: Place, owner: Node, serial: int) -> None:
        """The task waits for this owner too. `serial` is another one for each call."""
        branch = self._branch(owner)
        if branch in place.stands:
            return
        place.stands.append(branch)
        branch.waiting += 1
        heapq.heappush(branch.tasks, (place.order, serial, place))
        while branch.parent is not None:  # whoever was asleep for want of tasks
            if branch.entry is None:
                branch.wake()
            branch = branch.parent

    def _branch(self, node: Node) -> Branch:
        above = node.parent
        if above is None:
            return self.root
        parent = self._branch(above)
        branch = parent.children.get(node)
        if branch is None:
            branch = parent.children[node] = Branch(node, self, parent)
            node.branches[branch] = None
        return branch

    def part(self, branch: Branch) -> None:
        """A task, whose `place` is another one by now, does not stand in that branch any more."""
        branch.waiting -= 1
        if len(branch.tasks) > 2 * branch.waiting + 64:
            branch.tasks = [entry for entry in branch.tasks if entry[2].task.place is entry[2]]
            heapq.heapify(branch.tasks)
        if not branch.waiting:
            _cut(branch)


def _cut(branch: Branch) -> None:
    """Nothing waits in the branch, nor perhaps in those above it."""
    parent = branch.parent
    while parent is not None and not branch.children:
        del parent.children[branch.node]
        del branch.node.branches[branch]
        branch.entry = None
        branch, parent = parent, parent.parent


def next_in(lines: Sequence[Line]) -> tuple[Place, Branch] | None:
    """The place whose turn it is among all tasks of the lines, and the invocation's branch that it is served in."""
    branches = _next([line.root for line in lines])
    if branches is None:
        return None
    best: tuple[Place, Branch] | None = None
    for branch in branches:
        place = branch.head()
        if place is not None and (best is None or place.order < best[0].order):
            best = place, branch
    return best


def _next(branches: list[Branch]) -> list[Branch] | None:
    """The branches of the invocation whose turn it is, below branches of one node in several lines."""
    if branches[0].node.level is Level.INVOCATION:
        return branches
    while True:
        first: Branch | None = None
        for branch in branches:
            child = branch.top()
            if child is not None and (first is None or child.node.key < first.node.key):
                first = child
        if first is None:
            return None
        node = first.node
        candidates = [first] if len(branches) == 1 else [b.children[node] for b in branches if node in b.children]
        found = _next(candidates)
        if found is not None:
            return found
        for candidate in candidates:
            candidate.entry = None  # all below it are at their limits; whoever falls below one wakes it
