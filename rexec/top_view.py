"""What `rexec top` draws, from one overview: a pure function from a message to something that rich can show."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from protos.rexec.scheduler.v1 import status_pb2
from rexec.no_workers import named_pools
from rexec.status_text import duration, harmless, money

MAX_PLATFORMS = 8
"""So that the invocations are on the screen too."""
MAX_POOLS = 8
"""The same."""

HOUR_SECONDS = 3600.0


def view(overview: status_pb2.Overview, server: str, notice: str, most_invocations: int) -> RenderableType:
    """The whole screen. `notice` is for the line below the title; empty for none."""
    parts: list[RenderableType] = [_title(overview, server)]
    if notice:
        parts.append(_text(notice, "bold red"))
    parts += [_work(overview), _workers(overview), _cost(overview), Text()]
    if overview.platforms:
        parts += [_platforms(overview), Text()]
    if overview.pools:
        table = _pools(overview)
        parts += [table, Text()]
        most_invocations -= table.row_count + 2
    parts.append(_invocations(overview, max(1, most_invocations)))
    return Group(*parts)


def _text(text: str, style: str = "") -> Text:
    """One line, cut at the edge; nothing in it is taken for markup."""
    return Text(harmless(text), style, no_wrap=True, overflow="ellipsis")


def _row(*cells: str) -> list[Text]:
    """Cells of a table. As plain strings they would be read as markup."""
    return [_text(cell) for cell in cells]


def _title(overview: status_pb2.Overview, server: str) -> Text:
    version = overview.software_version or "?"
    return _text(f"rexec {version} at {server}, up {duration(overview.uptime_seconds)}", "bold")


def _work(overview: status_pb2.Overview) -> Text:
    work = overview.work
    why = ", ".join(f"{reason.category.replace('_', ' ')} {reason.tasks}" for reason in work.reasons)
    said = f"actions   {work.waiting_tasks} waiting, {work.running_tasks} running"
    if work.expected_slot_seconds:
        said += f"; what waits takes {duration(work.expected_slot_seconds)} of one slot"
    return _text(f"{said}  ({why})" if why else said)


def _workers(overview: status_pb2.Overview) -> Text:
    states = []
    slots = busy = 0
    for count in overview.workers:
        if count.workers:
            states.append(f"{count.workers} {status_pb2.WorkerState.Name(count.state).lower()}")
        if count.state == status_pb2.READY:
            slots += count.slots
        busy += count.busy_slots
    if not states and (pools := named_pools(overview)):
        return _text(f"workers   none; {pools}")
    return _text(f"workers   {', '.join(states) or 'none'}; {busy} of {slots} slots busy")


def _cost(overview: status_pb2.Overview) -> Text:
    tenants = overview.tenants
    hours = sum(tenant.use.slot_seconds for tenant in tenants) / HOUR_SECONDS
    if not tenants:  # of others' tenants nothing is told
        hours = sum(invocation.use.slot_seconds for invocation in overview.invocations) / HOUR_SECONDS
    if not overview.HasField("price"):
        return _text(f"cost      {hours:.2f} slot-hours; no price is configured ([scheduler.price])")
    uses = [tenant.use for tenant in tenants] or [invocation.use for invocation in overview.invocations]
    spent = money(sum(use.cost for use in uses), overview.price.currency)
    return _text(f"cost      {spent} for {hours:.2f} slot-hours")


def _table(*titles: str, right: frozenset[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="reverse", expand=True)
    for title in titles:
        last = title in ("WHY", "PROBLEM", "INVOCATION")
        table.add_column(
            title,
            justify="right" if title in right else "left",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if last else None,
        )
    return table


def _platforms(overview: status_pb2.Overview) -> Table:
    table = _table("WAITING FOR", "ACTIONS", "OLDEST", "TAKES", "SLOTS", "WHY",
                   right=frozenset({"ACTIONS", "OLDEST", "TAKES", "SLOTS"}))  # fmt: skip
    shown = overview.platforms[:MAX_PLATFORMS]
    for platform in shown:
        name = ", ".join(f"{asked.name}={asked.value}" for asked in platform.properties) or "any platform"
        if platform.instance_name:
            name = f"{platform.instance_name}: {name}"
        table.add_row(
            *_row(
                name[:40],
                str(platform.tasks),
                duration(platform.oldest_seconds),
                duration(platform.expected_slot_seconds) if platform.expected_slot_seconds else "?",
                str(platform.slots),
                platform.reason,
            )
        )
    left_out = overview.platforms_left_out + len(overview.platforms) - len(shown)
    if left_out:
        table.add_row(_text(f"and {left_out} more platforms", "dim"))
    return table


def _pools(overview: status_pb2.Overview) -> Table:
    """Those at work first."""
    costs = any(pool.price_per_hour or pool.cost_today for pool in overview.pools)
    numbers = ["READY", "TARGET", "MAX", "STARTING", "LEAVING", "SLOTS", *(["TODAY"] if costs else [])]
    table = _table("POOL", *numbers, "PROBLEM", right=frozenset(numbers))
    pools = sorted(overview.pools, key=lambda pool: not (pool.target or pool.ready or pool.starting or pool.problem))
    for pool in pools[:MAX_POOLS]:
        figures = (pool.ready, pool.target, pool.max, pool.starting, pool.leaving, pool.ready * pool.slots)
        cost = [money(pool.cost_today, overview.price.currency)] if costs else []
        problem = "the autoscaler is away" if pool.autoscaler_away else pool.problem
        table.add_row(*_row(pool.name[:40], *map(str, figures), *cost, problem))
    left_out = overview.pools_left_out + max(0, len(pools) - MAX_POOLS)
    if left_out:
        table.add_row(_text(f"and {left_out} more pools", "dim"))
    return table


def _invocations(overview: status_pb2.Overview, most: int) -> Table:
    costs = overview.HasField("price")
    numbers = ["WAIT", "RUN", "DONE", "CACHED", "FAILED", "SLOTS", "SLOT TIME", *(["COST"] if costs else []), "ETA"]
    table = _table("USER", *numbers, "SINCE", "INVOCATION", right=frozenset(numbers))
    shown = overview.invocations[:most]
    for invocation in shown:
        use, owner = invocation.use, invocation.owner
        idle = not (use.queued or use.executing or use.slots)
        who = "/".join(part for part in (owner.tenant, owner.user) if part) or "-"
        cells = [
            str(use.queued),
            str(use.executing),
            str(use.succeeded),
            str(use.cached),
            str(use.failed),
            str(use.slots),
            duration(use.slot_seconds),
            *([money(use.cost, overview.price.currency)] if costs else []),
            eta(invocation, idle),
        ]
        since = duration(invocation.first_seen_seconds)
        if idle:
            since += f", idle {duration(invocation.idle_seconds)}"
        label = owner.invocation or "-"
        if invocation.instance_name:
            label += f" in {invocation.instance_name}"
        table.add_row(*_row(who[:24], *cells, since, label), style="dim" if idle else "")
    left_out = overview.invocations_left_out + len(overview.invocations) - len(shown)
    if left_out:
        table.add_row(_text(f"and {left_out} more", "dim"))
    return table


def eta(invocation: status_pb2.Invocation, idle: bool) -> str:
    """When it is done, as far as anyone can say."""
    if idle:
        return "-"
    return duration(invocation.eta_seconds) if invocation.HasField("eta_seconds") else "?"
