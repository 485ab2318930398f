"""What actions take up of a worker, and how many of them it has room for.

A worker has slots and, if it says so, cores and memory. An action takes up as many slots as it asks for (one, if it does not
say), and of cores and memory what it asks for, or else what its slots stand for: their share of what the worker has. So
where no action names a figure, slots are all that counts.

Cores and memory are counted where the worker's agent says how much there is (`Offer.cpu_millis`, `Offer.memory_bytes`). A
worker that only offers a platform property `cpu` or `memory` takes each action that asks for that much or less, and counts
slots alone: such a property says what one action may have. Where a worker says neither, actions that name a figure do not fit.

What an action has been seen to take of memory is heeded where memory is counted, and never keeps it from a worker that is
empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from cas.config import parse_bytes
from cas.errors import MalformedRequest
from rexec.scheduler.need import MAX_MEMORY_BYTES, Need, Use
from rexec.scheduler.platform import Offer
from rexec.scheduler.task import Demand, Worker

MAX_SLOTS = 4096
MAX_CPU_MILLIS = 100_000_000
"""100,000 cores."""
COUNTED = ("cpu", "memory", "slots")
"""Platform properties that are figures: they become a Demand and are not compared with what workers offer."""


@lru_cache(maxsize=4096)
def use_on(offer: Offer, slots: int, need: Need) -> Use | None:
    """What the need takes up of a worker with this offer and so many slots; None if it is too much even when empty."""
    if need.slots > slots:
        return None
    cpu = memory = 0
    share = need.slots * 1000
    if offer.cpu_millis:
        cpu = need.cpu_millis or offer.cpu_millis * need.slots // slots
        if cpu > offer.cpu_millis:
            return None
        share = max(share, cpu * slots * 1000 // offer.cpu_millis)
    elif need.cpu_millis and need.cpu_millis > offered_cpu(offer):
        return None
    if offer.memory_bytes:
        of_slots = offer.memory_bytes * need.slots // slots
        memory = need.memory_bytes or max(of_slots, min(need.expected_memory_bytes, offer.memory_bytes))
        if memory > offer.memory_bytes:
            return None
        share = max(share, memory * slots * 1000 // offer.memory_bytes)
    elif need.memory_bytes and need.memory_bytes > offered_memory(offer):
        return None
    plain = need.slots == 1 and cpu == offer.cpu_millis // slots and memory == offer.memory_bytes // slots
    return Use(need.slots, cpu, memory, share, plain)


@lru_cache(maxsize=1024)
def offered_cpu(offer: Offer) -> int:
    """The most thousandths of a core that one action may ask for, by the platform properties of the worker."""
    return max((_figure(parse_cpu, value) for name, value in offer.pairs if name == "cpu"), default=0)


@lru_cache(maxsize=1024)
def offered_memory(offer: Offer) -> int:
    """The most bytes of memory that one action may ask for, by the platform properties of the worker."""
    return max((_figure(parse_memory, value) for name, value in offer.pairs if name == "memory"), default=0)


def room_for(worker: Worker, use: Use) -> int:
    """How many more leases that take up so much the worker has room for; 0 or less: none in its slots."""
    offer = worker.offer
    room = worker.free_slots // use.slots
    if use.cpu_millis:
        room = min(room, (offer.cpu_millis - worker.used_cpu_millis) // use.cpu_millis)
    if use.memory_bytes:
        room = min(room, (offer.memory_bytes - worker.used_memory_bytes) // use.memory_bytes)
    return room


def demand_of(figures: Mapping[str, str]) -> Demand:
    """The demand that platform properties among COUNTED make. Raises MalformedRequest, naming the value."""
    slots = _parsed(parse_slots, "slots", figures) or 1
    return Demand(slots, _parsed(parse_cpu, "cpu", figures), _parsed(parse_memory, "memory", figures))


def parse_slots(text: str) -> int:
    """A whole number of slots. Raises ValueError."""
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= MAX_SLOTS:
        raise ValueError(f"expected a whole number from 1 to {MAX_SLOTS}")
    return int(text)


def parse_cpu(text: str) -> int:
    """Cores such as "2" or "0.5", as thousandths. Raises ValueError."""
    whole, dot, fraction = text.partition(".")
    digits = whole + fraction
    if not digits.isascii() or not digits.isdigit() or not whole or (dot and not fraction) or len(text) > 20:
        raise ValueError('expected a number of cores such as "2" or "0.5"')
    millis = int(whole) * 1000 + int((fraction + "000")[:3])
    if not 1 <= millis <= MAX_CPU_MILLIS:
        raise ValueError(f"expected 0.001 to {MAX_CPU_MILLIS // 1000} cores")
    return millis


def parse_memory(text: str) -> int:
    """Bytes, such as "4GiB", "512M" or "1073741824". Raises ValueError."""
    try:
        size_bytes = parse_bytes(text) if len(text) <= 40 else 0
    except ValueError:
        size_bytes = 0
    if not 1 <= size_bytes <= MAX_MEMORY_BYTES:
        raise ValueError('expected a size such as "4GiB", "512M" or a number of bytes, of at most 1 PiB')
    return size_bytes


def _parsed(parse: Callable[[str], int], name: str, figures: Mapping[str, str]) -> int:
    """0 if there is no such figure."""
    text = figures.get(name)
    if text is None:
        return 0
    try:
        return parse(text)
    except ValueError as problem:
        raise MalformedRequest(f"platform property {name}={text[:100]!r}: {problem}") from None


def _figure(parse: Callable[[str], int], text: str) -> int:
    """0 for what is no figure: a worker may offer what it likes."""
    try:
        return parse(text)
    except ValueError:
        return 0
