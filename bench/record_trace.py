"""Turns a Bazel build into a trace for bench.autoscale: each action that ran, how long it took, and which it had to wait for.

    bazel build --jobs=2 --spawn_strategy=local --profile=PROFILE --experimental_profile_include_primary_output //...
    bazel aquery --output=jsonproto 'deps(//...)' > GRAPH
    python -m bench.record_trace PROFILE GRAPH > bench/traces/NAME.txt

The times are those of a machine that runs as few actions at once as it has cores; that actions ran one after the other there is
left out, because the graph says what could have run at once.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any


def main() -> None:
    """Print the trace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", type=Path)
    parser.add_argument("graph", type=Path)
    arguments = parser.parse_args()
    seconds = durations(json.loads(arguments.profile.read_text())["traceEvents"])
    print(
        "# One action a line: number, kind, seconds, numbers of those it waits for. Written by bench/record_trace.py."
    )
    for line in lines(json.loads(arguments.graph.read_text()), seconds):
        print(line)


def durations(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by primary output of the actions that started a process."""
    actions = [event for event in events if event.get("cat") == "action processing" and event.get("out")]
    spawns = [event for event in events if event.get("cat") == "local action execution"]
    ran = {}
    for spawn in spawns:
        for action in actions:
            inside = action["ts"] <= spawn["ts"] and spawn["ts"] + spawn["dur"] <= action["ts"] + action["dur"] + 1
            if inside and action["tid"] == spawn["tid"]:
                ran[action["out"]] = spawn["dur"] / 1e6
    return ran


def lines(graph: Mapping[str, Any], seconds: Mapping[str, float]) -> list[str]:
    """The actions that ran, each after those it waits for."""
    parts = {part["id"]: part for part in graph["pathFragments"]}

    def path(fragment: int) -> str:
        part = parts[fragment]
        parent = path(part["parentId"]) + "/" if "parentId" in part else ""
        return parent + str(part["label"])

    paths = {artifact["id"]: path(artifact["pathFragmentId"]) for artifact in graph["artifacts"]}
    sets = {one["id"]: one for one in graph["depSetOfFiles"]}
    makers = {output: action for action in graph["actions"] for output in action["outputIds"]}

    @cache
    def inputs(number: int) -> frozenset[int]:
        one = sets[number]
        direct = frozenset(one.get("directArtifactIds", ()))
        return direct.union(*(inputs(child) for child in one.get("transitiveDepSetIds", ())))

    @cache
    def waits_for(output: int) -> frozenset[str]:
        """Primary outputs of the actions with a process that must end before the action that makes this one."""
        found: set[str] = set()
        for artifact in frozenset().union(*(inputs(number) for number in makers[output].get("inputDepSetIds", ()))):
            if artifact in makers:
                primary = makers[artifact]["primaryOutputId"]
                name = paths[primary]
                # What Bazel makes itself takes no time, but passes on what it waits for.
                found |= {name} if name in seconds else waits_for(primary)
        return frozenset(found)

    actions = {paths[action["primaryOutputId"]]: action for action in graph["actions"]}
    numbers: dict[str, int] = {}
    found: list[str] = []

    def add(name: str) -> None:
        if name in numbers:
            return
        before = sorted(waits_for(actions[name]["primaryOutputId"]))
        for other in before:
            add(other)
        numbers[name] = len(numbers)
        after = ",".join(str(number) for number in sorted(numbers[other] for other in before))
        found.append(f"{numbers[name]} {actions[name]['mnemonic']} {seconds[name]:.3f} {after}".rstrip())

    for name in sorted(seconds):
        if name in actions:
            add(name)
    return found


if __name__ == "__main__":
    main()
