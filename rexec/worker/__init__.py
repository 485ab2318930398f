"""The worker: takes leases from the scheduler, runs their commands, and puts the outputs into the store."""

from rexec.worker.agent import Agent
from rexec.worker.link import Dial, Link, LinkBroken, dial_over
from rexec.worker.settings import WorkerSettings
from rexec.worker.start import open_agent, run_agent

__all__ = ["Agent", "Dial", "Link", "LinkBroken", "WorkerSettings", "dial_over", "open_agent", "run_agent"]
