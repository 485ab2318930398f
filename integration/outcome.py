"""What a Bazel command that has ended says of itself: exit code, output, and which spawns ran where."""

import re
from dataclasses import dataclass, field
from typing import Self

from integration.process import tail

_PROCESSES = re.compile(r"^INFO: \d+ process(?:es)?: (?P<parts>.+)\.$", re.MULTILINE)
_PART = re.compile(r"(?P<number>\d+) (?P<strategy>.+)")


@dataclass(frozen=True, slots=True)
class Processes:
    """Bazel's own count of what it ran: `INFO: 9 processes: 2 internal, 7 remote.`"""

    by_strategy: dict[str, int] = field(default_factory=dict)
    """Strategy as Bazel calls it (`remote`, `remote cache hit`, `linux-sandbox`, `internal`) -> spawns."""

    @classmethod
    def parse(cls, output: str) -> Self:
        """Read the last such line of Bazel's stderr. Empty when there is none (nothing was done)."""
        found = list(_PROCESSES.finditer(output))
        if not found:
            return cls()
        parts = {}
        for part in found[-1]["parts"].split(", "):
            match = _PART.fullmatch(part)
            if match is None:
                raise AssertionError(f"a part of Bazel's process line has no number: {found[-1][0]!r}")
            parts[match["strategy"]] = int(match["number"])
        return cls(parts)

    @property
    def remote(self) -> int:
        """Spawns that a worker ran for this command."""
        return self.by_strategy.get("remote", 0)

    @property
    def cache_hits(self) -> int:
        """Spawns whose result came from the server's action cache."""
        return self.by_strategy.get("remote cache hit", 0)

    @property
    def elsewhere(self) -> dict[str, int]:
        """Spawns that were neither: run by Bazel on this machine in one way or another."""
        ours = {"remote", "remote cache hit", "internal"}
        return {strategy: number for strategy, number in self.by_strategy.items() if strategy not in ours}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A Bazel command that has ended."""

    command: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    wall_seconds: float

    @property
    def processes(self) -> Processes:
        return Processes.parse(self.stderr)

    def expect(self, exit_code: int = 0) -> Self:
        """Return itself. Raises AssertionError with the end of the output when the command ended differently."""
        if self.exit_code != exit_code:
            raise AssertionError(
                f"{' '.join(self.command)} ended with {self.exit_code}, not {exit_code}; stdout ends with:\n"
                f"{tail(self.stdout)}\nstderr ends with:\n{tail(self.stderr)}"
            )
        return self
