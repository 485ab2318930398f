"""Who uses how much: the tree of tenants, their users and their invocations, with what each has running and waiting.

A node is kept only while something of it waits or runs, so the tree is no larger than the work. What is used is counted in
thousandths of a slot, as whole numbers, so that nothing is left over when all has ended.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from rexec.scheduler.fairness_settings import FairnessSettings, OwnShareSettings, ShareSettings
from rexec.scheduler.task import Owner

if TYPE_CHECKING:
    from rexec.scheduler.line import Branch

ShareKey = tuple[float, int, int]
"""Use for weight, when it was served last, a serial number: the smallest one's turn it is."""


class Level(IntEnum):
    """What a node stands for."""

    ROOT = 0
    TENANT = 1
    USER = 2
    INVOCATION = 3


class Node:
    """A tenant, a user of a tenant, or an invocation of a user."""

    __slots__ = (
        "branches", "children", "key", "level", "limits", "name", "owner", "parent", "queued", "running", "serial", "served",
        "used_millis",
    )  # fmt: skip

    def __init__(self, name: str, level: Level, parent: Node | None, limits: ShareSettings, serial: int) -> None:
        self.name = name
        self.level = level
        self.parent = parent
        self.limits = limits
        self.serial = serial
        self.served = serial
        """When it got a worker last, in grants and births of nodes: who comes now is not before those that wait."""
        self.running = 0
        """Leases that take up room."""
        self.used_millis = 0
        """What these leases take up, in thousandths of a slot."""
        self.queued = 0
        """Live operations in stage QUEUED."""
        self.owner = Owner()
        """Of an invocation: the three names."""
        self.children: dict[str, Node] = {}
        self.branches: dict[Branch, None] = {}
        """Where tasks of it wait: one for each line."""
        self.key: ShareKey = (0.0, serial, serial)

    @property
    def full(self) -> bool:
        """Whether it has as many leases as it may have."""
        return 0 < self.limits.max_running <= self.running

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it is forgotten."""
        return not (self.running or self.queued or self.branches or self.children)

    def __str__(self) -> str:
        return f"{self.level.name.lower()} {self.name!r}"


class Shares:
    """The tree."""

    def __init__(self, settings: FairnessSettings) -> None:
        self._settings = settings
        own = (*settings.tenants.values(), *settings.users.values())
        self._has_queue_limits = any(share.max_queued for share in own) or any(
            share.max_queued for share in (settings.tenant, settings.user, settings.invocation)
        )
        self._serial = 0
        self.root = Node("", Level.ROOT, None, ShareSettings(), 0)
        self._invocations: dict[Owner, Node] = {}

    def __len__(self) -> int:
        return len(self._invocations)

    def of(self, owner: Owner) -> Node:
        """The invocation's node, made if need be."""
        node = self._invocations.get(owner)
        if node is None:
            node = self.root
            for level, name in zip(
                (Level.TENANT, Level.USER, Level.INVOCATION), (owner.tenant, owner.user, owner.invocation), strict=True
            ):
                child = node.children.get(name)
                if child is None:
                    self._serial += 1
                    child = node.children[name] = Node(name, level, node, self._limits(level, name), self._serial)
                node = child
            node.owner = owner
            self._invocations[owner] = node
        return node

    def _limits(self, level: Level, name: str) -> ShareSettings:
        settings = self._settings
        if level is Level.INVOCATION:
            return settings.invocation
        default, named = (
            (settings.tenant, settings.tenants) if level is Level.TENANT else (settings.user, settings.users)
        )
        own: OwnShareSettings | None = named.get(name)
        return default if own is None else own.over(default)

    def forget_idle(self, node: Node) -> None:
        """Drop an invocation, its user and its tenant if nothing waits or runs for them any more."""
        if node.running or node.queued or node.branches:
            return
        if self._invocations.pop(node.owner, None) is None:
            return
        above = node.parent
        while above is not None and node.idle:
            del above.children[node.name]
            node, above = above, above.parent

    # What waits

    def queued(self, owner: Owner, by: int) -> None:
        """So many more of the owner's live operations are in stage QUEUED."""
        invocation = self.of(owner)
        node: Node | None = invocation
        while node is not None:
            node.queued += by
            node = node.parent
        if not invocation.queued:
            self.forget_idle(invocation)

    def queue_limit(self, owner: Owner) -> str:
        """Who must not queue another operation, and why, for a person; empty if nothing is against it. Makes no node."""
        if not self._has_queue_limits:
            return ""
        node: Node = self.root
        for level, name in zip(
            (Level.TENANT, Level.USER, Level.INVOCATION), (owner.tenant, owner.user, owner.invocation), strict=True
        ):
            limit = self._limits(level, name).max_queued
            child = node.children.get(name)
            if limit and child is not None and child.queued >= limit:
                return f"{child} has {child.queued} operations queued, and the limit is {limit} (max_queued)"
            if child is None:
                break
            node = child
        return ""

    # What runs

    def charge(self, owner: Owner, millis: int) -> None:
        """A lease takes up so much for the owner."""
        self._serial += 1
        node: Node | None = self.of(owner)
        while node is not None:
            node.running += 1
            node.used_millis += millis
            node.served = self._serial
            node.key = (node.used_millis / node.limits.weight, self._serial, node.serial)
            node = node.parent

    def discharge(self, owner: Owner, millis: int) -> list[Node]:
        """The lease takes up nothing any more. Returns those that had reached their limit with it."""
        freed = []
        invocation = self.of(owner)
        node: Node | None = invocation
        while node is not None:
            if node.full:
                freed.append(node)
            node.running -= 1
            node.used_millis -= millis
            node.key = (node.used_millis / node.limits.weight, node.served, node.serial)
            for branch in node.branches:
                branch.wake()
            node = node.parent
        self.forget_idle(invocation)
        return freed

    def limits_on(self, owner: Owner) -> list[Node]:
        """Of the owner's invocation, user and tenant those that may have only so many running."""
        found = []
        node = self._invocations.get(owner)
        while node is not None:
            if node.limits.max_running:
                found.append(node)
            node = node.parent
        return found

    def running_limit(self, owner: Owner) -> str:
        """The limit that keeps the owner's tasks from running now, for a person; empty if none does."""
        node = self._invocations.get(owner)
        while node is not None:
            if node.full:
                return f"the limit of {node}, {node.limits.max_running} running, is reached"
            node = node.parent
        return ""
