"""Writes a workspace of 300 actions that say in a log of their own when they run: genrules and C++ mixed.

255 genrules stand in 15 layers, each a sum over some of the layer before, after a sleep of 0.1 to 1 s; beside them a binary of
44 C++ units is compiled and linked by a compiler that is wrapped in a script. What every output must say is computed here
too. Each action writes a line to the log at its start and its end, outside of its input root, with its name, the process
that ran it (which is the worker) and the time:

    start g03_11 4711 1700000000.123456

The workspace depends on nothing but this file and where the log is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

LAYERS = 15
WIDTH = 17
UNITS = 44
ACTIONS = LAYERS * WIDTH + UNITS + 1
"""The last one is the link."""
COMPILER_NAME = "logged-compiler"

_MODULUS = 1_000_003
_INPUTS = 3


@dataclass(frozen=True, slots=True)
class Rule:
    """One genrule."""

    name: str
    number: int
    sleep_seconds: float
    inputs: tuple[str, ...]


@cache
def rules() -> tuple[Rule, ...]:
    """All genrules, those that others need first. The same every time."""
    random = Random(4)
    found = []
    for layer in range(LAYERS):
        for place in range(WIDTH):
            before = [rule_name(layer - 1, other) for other in range(WIDTH)] if layer else []
            inputs = tuple(sorted(random.sample(before, _INPUTS))) if before else ()
            seconds = random.choice((0.1, 0.1, 0.2, 0.3, 0.5, 1.0))
            found.append(Rule(rule_name(layer, place), layer * WIDTH + place + 1, seconds, inputs))
    return tuple(found)


def rule_name(layer: int, place: int) -> str:
    return f"g{layer:02d}_{place:02d}"


def expected_values() -> dict[str, int]:
    """What the output of each genrule says, by its name."""
    values: dict[str, int] = {}
    for rule in rules():
        values[rule.name] = (rule.number + 3 * sum(values[name] for name in rule.inputs)) % _MODULUS
    return values


def expected_total() -> int:
    """What the binary prints."""
    return sum(unit * unit + 1 for unit in range(UNITS))


def action_names() -> frozenset[str]:
    """The names that stand in the log when all has been built."""
    units = {f"unit{unit}" for unit in range(UNITS)}
    return frozenset({rule.name for rule in rules()} | units | {"link"})


def write(destination: Path, log: Path) -> Path:
    """Write the workspace into the directory `destination`, with actions that write to `log`. Returns the compiler."""
    (destination / "rules").mkdir(parents=True, exist_ok=True)
    (destination / "rules" / "BUILD.bazel").write_text("".join(_genrule(rule, log) for rule in rules()))
    program = destination / "program"
    program.mkdir(exist_ok=True)
    for unit in range(1, UNITS):
        (program / f"unit{unit}.cc").write_text(_unit(unit))
    declarations = "".join(f"long unit{unit}();\n" for unit in range(UNITS))
    calls = "".join(f"  total += unit{unit}();\n" for unit in range(1, UNITS))
    (program / "unit0.cc").write_text(
        f"#include <cstdio>\n{declarations}"
        f'int main() {{\n  long total = unit0();\n{calls}  std::printf("total=%ld\\n", total);\n}}\n'
        "long unit0() { return 1; }\n"
    )
    sources = "".join(f'        "unit{unit}.cc",\n' for unit in range(UNITS))
    (program / "BUILD.bazel").write_text(
        'load("@rules_cc//cc:defs.bzl", "cc_binary")\n\n'
        f'cc_binary(\n    name = "program",\n    srcs = [\n{sources}    ],\n)\n'
    )
    # Beside the workspace: Bazel takes a compiler within it for one of its inputs.
    compiler = destination.parent / COMPILER_NAME
    compiler.write_text(_compiler(log))
    compiler.chmod(0o755)
    return compiler


def _genrule(rule: Rule, log: Path) -> str:
    sources = "".join(f'        ":{name}.txt",\n' for name in rule.inputs)
    total = " + ".join(f"$$(cat $(location :{name}.txt))" for name in rule.inputs) or "0"
    steps = (
        f"echo start {rule.name} $$PPID $$EPOCHREALTIME >> {log}",
        f"sleep {rule.sleep_seconds:g}",
        f"echo $$(( ({rule.number} + 3 * ({total})) % {_MODULUS} )) > $@",
        f"echo end {rule.name} $$PPID $$EPOCHREALTIME >> {log}",
    )
    return (
        f'genrule(\n    name = "{rule.name}",\n    srcs = [\n{sources}    ],\n    outs = ["{rule.name}.txt"],\n'
        f'    cmd = "{" && ".join(steps)}",\n    visibility = ["//visibility:public"],\n)\n\n'
    )


def _unit(unit: int) -> str:
    return (
        "#include <map>\n#include <string>\n\n"
        f"long unit{unit}() {{\n  std::map<std::string, long> values;\n"
        f'  values["square"] = {unit}L * {unit}L;\n  values["one"] = 1;\n'
        "  long total = 0;\n  for (const auto& value : values) total += value.second;\n  return total;\n}\n"
    )


def _compiler(log: Path) -> str:
    """gcc, which says in the log what it makes of a unit or the whole program; when it is asked for its version or its
    folders it is silent."""
    return f"""#!/bin/bash
name=
for argument in "$@"; do
    case "$argument" in
        program/unit*.cc) name=${{argument#program/}}; name=${{name%.cc}} ;;
        */program/program | *program-2.params) name=link ;;
    esac
done
[ -z "$name" ] || echo "start $name $PPID $EPOCHREALTIME" >> {log}
/usr/bin/gcc "$@" || exit
[ -z "$name" ] || echo "end $name $PPID $EPOCHREALTIME" >> {log}
"""
