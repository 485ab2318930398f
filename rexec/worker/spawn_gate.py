"""The lock that keeps "text file busy" away from actions.

Linux refuses to execute a file that anyone holds open for writing (ETXTBSY, execve(2)). The agent closes each executable
before it is used, but a child that another thread is just starting has a copy of every descriptor of the agent, until its
own execve closes them. So a spawn holds this lock from fork to exec, and whoever has written an executable takes it once
after closing: by then every child that could still hold the descriptor has gone through its execve.

The new process is also registered before the lock is given back, so whoever has looked at the table of processes and then
takes the lock knows of each whose it is.
"""

from __future__ import annotations

import threading


class SpawnGate:
    """One for each process. `spawning` is held around fork..exec; `settle` is called after closing written executables."""

    def __init__(self) -> None:
        self.spawning = threading.Lock()

    def settle(self) -> None:
        """Return when no child can hold a descriptor that was closed before the call. Blocks for a few milliseconds at
        most: it is called in threads that write files."""
        with self.spawning:
            pass


GATE = SpawnGate()
"""Descriptors belong to the process, and so does the gate."""
