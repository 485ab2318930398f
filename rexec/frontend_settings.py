"""[frontend]: the options of `rexec frontend`, with the only place of their defaults."""

from __future__ import annotations

import msgspec


class FrontendSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[frontend]: which scheduler `rexec frontend` works for. It shows who it is as [connection] says."""

    schedulers: tuple[str, ...] = ()
    """grpc://HOST:PORT, grpcs:// with TLS or unix:PATH of the scheduler, and of those that may take over from it."""
    name: str = ""
    """The frontend's name in the scheduler's log. Empty: HOST-PID."""
    wait_seconds: float = 30.0
    """How long a request waits for a scheduler that does not answer before it fails with UNAVAILABLE. Streams of clients that
    wait for their actions stay open for as long as it takes."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        if self.wait_seconds < 0:
            raise ValueError(f"wait_seconds is {self.wait_seconds}, expected 0 or more")
