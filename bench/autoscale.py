"""Compares the autoscaler's policy with Kubernetes' HorizontalPodAutoscaler on simulated pools and builds.

    python -m bench.autoscale [--plot FILE.svg] [--target-wait SECONDS] [--idle SECONDS]

The HPA follows the CPU (a utilisation of 50 %) or the queue (one action that waits or runs for each slot); our policy has its
default settings. Builds go on until the last has ended, and pools are paid for 15 minutes longer, so that it counts how fast
they shrink. A worker that is taken away goes on with what it runs, whoever takes it away; in a cluster the HPA ends it.
Everything is calculated; nothing depends on the machine or the time.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.autoscale_plot import drawing
from bench.autoscale_scalers import DEFAULTS, HorizontalPodAutoscaler, OurPolicy
from bench.autoscale_simulation import Result, World
from bench.autoscale_traces import ALL

COLUMNS = "| trace | pools by | makespan s | mean build s | wait p50 s | wait p95 s | pods started | pod-hours | idle | cost |"


def main() -> None:
    """Print the table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="write a drawing of the slots over time there")
    parser.add_argument("--target-wait", type=float, default=DEFAULTS.target_wait_seconds, help="of our policy")
    parser.add_argument("--idle", type=float, default=DEFAULTS.idle_seconds, help="of our policy")
    arguments = parser.parse_args()
    print(COLUMNS)
    print("|---|---|" + "---:|" * 8)
    results: dict[str, dict[str, Result]] = {}
    for make in ALL:
        trace = make()
        scalers = (
            HorizontalPodAutoscaler("cpu", 0.5),
            HorizontalPodAutoscaler("queue", 1.0),
            OurPolicy(target_wait_seconds=arguments.target_wait, idle_seconds=arguments.idle),
        )
        results[trace.name] = {}
        for scaler in scalers:
            result = World(trace, scaler).run()
            results[trace.name][scaler.name] = result
            print(row(trace.name if scaler is scalers[0] else "", scaler.name, result), flush=True)
    if arguments.plot:
        arguments.plot.write_text(drawing(results))


def row(trace: str, scaler: str, result: Result) -> str:
    """One line of the table."""
    figures = (
        f"{result.makespan_seconds:.0f}",
        f"{result.mean_build_seconds:.1f}",
        f"{result.wait(0.5):.1f}",
        f"{result.wait(0.95):.1f}",
        f"{result.started}",
        f"{result.pod_hours:.2f}",
        f"{100 * result.idle_share:.0f} %",
        f"{result.cost:.2f}",
    )
    return f"| {trace} | {scaler} | " + " | ".join(figures) + " |"


if __name__ == "__main__":
    main()
