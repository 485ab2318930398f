"""What the loop has done to machines: started and removed, many at once, each by itself.

A start or removal that hangs or fails holds up no other, and nothing that goes wrong here reaches the loop but as a failure of
its pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import structlog

from rexec.autoscale.clock import Clock
from rexec.autoscale.failures import Failures
from rexec.autoscale.life import Life
from rexec.autoscale.observer import Observer
from rexec.autoscale.provider import Machine, Phase, Provider, Refused
from rexec.autoscale.settings import PoolKind, PoolSettings
from rexec.autoscale.shape import Shape

log = structlog.get_logger()

MAX_STARTS: Final = 20
"""Under way at once. Removals have as many of their own."""
RETRY_SECONDS: Final = 2.0
"""After a removal that was refused."""
MAX_RETRY_SECONDS: Final = 60.0
"""Whatever the refusal says."""


class Hands:
    """Starts and removes."""

    def __init__(
        self,
        families: Mapping[str, PoolSettings],
        providers: Mapping[PoolKind, Provider],
        failures: Failures,
        observer: Observer,
        clock: Clock,
        done: Callable[[], None],
    ) -> None:
        """`done` is called after each of them."""
        self._families = families
        self._providers = providers
        self._failures = failures
        self._observer = observer
        self._clock = clock
        self._done = done
        self._starts = asyncio.Semaphore(MAX_STARTS)
        self._removals = asyncio.Semaphore(MAX_STARTS)
        self.asked: dict[str, Machine] = {}
        """Machines whose start is under way, which no provider knows yet."""
        self.tasks: asyncio.TaskGroup | None = None
        """Where they run."""

    def problem_of(self, settings: PoolSettings | None) -> str:
        """What is wrong with the provider of a pool; "" if nothing is, or if it has no pool."""
        if settings is None:
            return ""
        provider = self._providers.get(settings.kind)
        return provider.problem if provider is not None else f"no workers of kind {settings.kind.value} here"

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Have it done beside the loop."""
        assert self.tasks is not None, "the loop runs"
        self.tasks.create_task(work)

    def start(self, shape: Shape, name: str) -> None:
        """Ask for a machine."""
        self.asked[name] = Machine(name, shape.family, self._clock.wall(), Phase.WAITING, image=shape.image)
        self._observer.asked(shape.family)
        self.spawn(self._start(shape, name))

    def remove(self, name: str, machine: Machine, life: Life, why: str, grace_seconds: float) -> None:
        """Take a machine away; `why` is for the observer."""
        life.removing = True
        self._observer.removed(machine.pool, why)
        self.spawn(self._remove(name, machine, life, why, grace_seconds))

    async def _start(self, shape: Shape, name: str) -> None:
        try:
            async with self._starts:
                if self._failures.useless(shape.name):
                    return
                await self._providers[shape.settings.kind].start(shape.settings, name, shape.image)
                log.debug("worker was asked for", pool=shape.name, worker=name)
        except Refused as refusal:
            self._failures.failed(shape.name, shape.family, name, str(refusal), refusal)
        except Exception:
            log.exception("a worker could not be started", pool=shape.name, worker=name)
            self._failures.failed(shape.name, shape.family, name, "a fault of the autoscaler, see its log")
        finally:
            del self.asked[name]
            self._done()

    async def _remove(self, name: str, machine: Machine, life: Life, why: str, grace_seconds: float) -> None:
        # Of a pool that is configured no more it is not known whose it is; a provider that does not know it passes it over.
        settings = self._families.get(machine.pool)
        providers = [self._providers[settings.kind]] if settings is not None else list(self._providers.values())
        wait = RETRY_SECONDS
        try:
            async with self._removals:
                for provider in providers:
                    await provider.remove(name, grace_seconds)
        except Refused as refusal:
            log.warning("a worker cannot be taken away", worker=name, why=str(refusal))
            wait = min(MAX_RETRY_SECONDS, max(wait, refusal.retry_after_seconds or 0.0))
        except asyncio.CancelledError:
            life.removing = False  # whoever goes on with the loop has to try again
            raise
        except Exception:
            log.exception("a worker could not be taken away", worker=name)
        else:
            log.debug("machine is taken away", pool=machine.pool, worker=name, why=why)
            return
        finally:
            self._done()
        life.removing = False
        life.retry_at = self._clock.monotonic() + wait
