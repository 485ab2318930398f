"""Runs cases: which ones, in which company, for how long, and what became of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from grpc import aio

from integration.conformance.actions import parks
from integration.conformance.case import Case, Failed, NotSupported, Phase
from integration.conformance.client import Client, connected
from integration.conformance.expect import code_of, name_of
from integration.conformance.options import HookFailed, Options

MOST_CHARACTERS = 600
"""Of a reason; servers put whole traces into their messages."""

SHARED_AT_ONCE = 6
"""Cases side by side; more would only wait for the same workers."""


class Verdict(StrEnum):
    """What became of a case."""

    PASS = "PASS"
    FAIL = "FAIL"
    NOT_SUPPORTED = "NOT SUPPORTED"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The verdict on one case."""

    case: Case
    verdict: Verdict
    reason: str
    """Empty for PASS."""
    seconds: float


async def run_all(
    cases: Sequence[Case], options: Options, tell: Callable[[Outcome], None] = lambda _outcome: None
) -> list[Outcome]:
    """The outcomes in the order of the cases; `tell` hears of each as it comes.

    Raises AioRpcError if the server does not answer GetCapabilities at all.
    """
    async with connected(options) as client:
        await client.connect()
        if any(case.execution for case in cases) and client.execution.exec_enabled:
            client.parks = await parks(client)
        outcomes: dict[str, Outcome] = {}

        async def judge(case: Case) -> None:
            outcomes[case.name] = await judged(case, client, options)
            tell(outcomes[case.name])

        of_phase = {phase: [case for case in cases if case.phase is phase] for phase in Phase}
        room = asyncio.Semaphore(SHARED_AT_ONCE)

        async def share(case: Case) -> None:
            async with room:
                await judge(case)

        async with asyncio.TaskGroup() as background:
            for case in of_phase[Phase.BACKGROUND]:
                background.create_task(judge(case))
            async with asyncio.TaskGroup() as shared:
                for case in of_phase[Phase.SHARED]:
                    shared.create_task(share(case))
            for case in of_phase[Phase.ALONE]:
                await judge(case)
        for case in of_phase[Phase.LAST]:
            await judge(case)
        return [outcomes[case.name] for case in cases]


async def judged(case: Case, client: Client, options: Options) -> Outcome:
    """Try one case."""
    started = time.monotonic()
    verdict, reason = Verdict.PASS, ""
    limit = case.timeout_seconds or options.timeout_seconds
    try:
        if case.execution and not client.execution.exec_enabled:
            raise NotSupported("execution is not advertised")
        async with asyncio.timeout(limit):
            await _alone(case.run(client))
    except NotSupported as missing:
        verdict, reason = Verdict.NOT_SUPPORTED, str(missing)
    except (Failed, HookFailed) as failure:
        verdict, reason = Verdict.FAIL, str(failure)
    except aio.AioRpcError as error:
        verdict = Verdict.FAIL
        reason = f"expected a call to succeed, got {name_of(code_of(error))}: {(error.details() or '')[:300]}"
    except TimeoutError:
        verdict, reason = Verdict.FAIL, f"not done after {limit:g} s"
    except Exception as error:  # noqa: BLE001 - a server may answer anything, and one case must not end the run
        verdict, reason = Verdict.FAIL, f"the answers cannot be understood: {type(error).__name__}: {error}"
    return Outcome(case, verdict, " ".join(reason.split())[:MOST_CHARACTERS], time.monotonic() - started)


def chosen(cases: Sequence[Case], only: frozenset[int], *, slow: bool) -> list[Case]:
    """The cases of a run by behaviour. Raises ValueError for a behaviour that has none."""
    unknown = only - {case.number for case in cases}
    if unknown:
        raise ValueError(f"there is no behaviour {min(unknown)}")
    ordered = sorted(cases, key=lambda case: case.number)
    return [case for case in ordered if (not only or case.number in only) and (slow or not case.slow)]


async def _alone(run: Awaitable[None]) -> None:
    """Await a case; of several things that went wrong at once, the first is told."""
    try:
        await run
    except ExceptionGroup as group:
        first: Exception = group
        while isinstance(first, ExceptionGroup):
            first = first.exceptions[0]
        raise first from None
