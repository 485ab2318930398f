"""Writes the part of the C++ test workspace that is too regular to be kept as files: 60 translation units.

Ten libraries of six units each; library N uses libraries N-1 and N-3, so the link order matters and a change in
lib00 reaches everything. Each unit takes a compiler about half a second. What each unit returns is computed here
too (`unit_value`), so a test knows what the built binary must print. The output depends on nothing but this file and
`addends`: the same text every time, or action cache tests would mean nothing.

Run as a script it writes the whole workspace, hand-written parts included, for use by hand:
`python -m integration.workspaces.generate_cpp DIRECTORY`.
"""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

LIBRARIES = 10
UNITS_PER_LIBRARY = 6
TRANSLATION_UNITS = LIBRARIES * UNITS_PER_LIBRARY
EDITED_UNIT = (LIBRARIES - 1, 0)
"""Library and unit that incremental tests change: only the binary and the tests that link lib09 follow."""

MODULUS = 1_000_003
RESIDUES = 40

Addends = Mapping[tuple[int, int], int]
"""(library, unit) -> a number added to the value of that unit; absent is 0."""


def library_name(library: int) -> str:
    return f"lib{library:02d}"


def dependencies(library: int) -> list[int]:
    return [library - distance for distance in (1, 3) if library >= distance]


def unit_value(library: int, unit: int, seed: int, addends: Addends) -> int:
    """What `libLL::unitU(seed)` returns: the same arithmetic as in the C++ text below."""
    step, stride, modulus = _constants(library, unit)
    value = sum({(seed * step + i * stride) % modulus for i in range(RESIDUES)})
    value += _triangle(unit + 3) + addends.get((library, unit), 0)
    if library == 0:
        value += (seed % 10) ** 2
    for dependency in dependencies(library):
        value += unit_value(dependency, (unit + 1) % UNITS_PER_LIBRARY, seed + dependency, addends) % 1000
    return value % MODULUS


def expected_total(addends: Addends | None = None) -> int:
    """What the binary //app:main prints after `total=`."""
    return sum(
        unit_value(library, unit, 1, addends or {}) for library in range(LIBRARIES) for unit in range(UNITS_PER_LIBRARY)
    )


def write_units(destination: Path, addends: Addends | None = None) -> None:
    """Write the libraries, the binary and the headers with expected values below the directory `destination`."""
    chosen = addends or {}
    for library in range(LIBRARIES):
        name = library_name(library)
        _write(destination / name / "BUILD.bazel", _library_build(library))
        _write(destination / name / f"{name}.h", _library_header(library))
        for unit in range(UNITS_PER_LIBRARY):
            write_unit(destination, library, unit, chosen)
    _write(destination / "app" / "BUILD.bazel", _app_build())
    _write(destination / "app" / "main.cc", _app_source())
    for library in (2, LIBRARIES - 1):
        write_expected(destination, library, chosen)


def write_unit(destination: Path, library: int, unit: int, addends: Addends) -> Path:
    """Write one source file and return its path."""
    path = destination / library_name(library) / f"unit{unit}.cc"
    _write(path, _unit_source(library, unit, addends.get((library, unit), 0)))
    return path


def write_expected(destination: Path, library: int, addends: Addends) -> None:
    """Write the header with the values that the hand-written test of that library expects."""
    values = ", ".join(str(unit_value(library, unit, 1, addends)) for unit in range(UNITS_PER_LIBRARY))
    path = destination / "tests" / f"{library_name(library)}_expected.h"
    _write(path, f"#pragma once\nconstexpr long kExpected[] = {{{values}}};\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@cache
def _constants(library: int, unit: int) -> tuple[int, int, int]:
    """Three numbers that make each unit's arithmetic its own."""
    return 7 + library * 13 + unit, 11 + unit * 5, 101 + 2 * (library * UNITS_PER_LIBRARY + unit)


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _library_build(library: int) -> str:
    name = library_name(library)
    labels = [f"//{library_name(dependency)}" for dependency in dependencies(library)]
    if library == 0:
        labels.append("//generated:table")
    sources = "".join(f'        "unit{unit}.cc",\n' for unit in range(UNITS_PER_LIBRARY))
    deps = "".join(f'        "{label}",\n' for label in sorted(labels))
    return f"""load("@rules_cc//cc:defs.bzl", "cc_library")

cc_library(
    name = "{name}",
    srcs = [
{sources}    ],
    hdrs = ["{name}.h"],
    visibility = ["//visibility:public"],
    deps = [
{deps}    ],
)
"""


def _library_header(library: int) -> str:
    name = library_name(library)
    declarations = "".join(f"long unit{unit}(long seed);\n" for unit in range(UNITS_PER_LIBRARY))
    names = ", ".join(f"unit{unit}" for unit in range(UNITS_PER_LIBRARY))
    return f"""#pragma once

namespace {name} {{

{declarations}
using Unit = long (*)(long);
constexpr int kUnits = {UNITS_PER_LIBRARY};
constexpr Unit kAll[kUnits] = {{{names}}};

}}  // namespace {name}
"""


def _unit_source(library: int, unit: int, addend: int) -> str:
    name = library_name(library)
    step, stride, modulus = _constants(library, unit)
    next_unit = (unit + 1) % UNITS_PER_LIBRARY
    includes = "".join(
        f'#include "{library_name(dependency)}/{library_name(dependency)}.h"\n' for dependency in dependencies(library)
    )
    extra = ""
    if library == 0:
        includes += '#include "generated/squares.h"\n'
        extra = "  value += kSquares[seed % 10];\n"
    for dependency in dependencies(library):
        extra += f"  value += {library_name(dependency)}::unit{next_unit}(seed + {dependency}) % 1000;\n"
    return f"""#include "{name}/{name}.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <vector>

{includes}
namespace {name} {{
namespace {{

template <long N>
struct Triangle {{
  static constexpr long value = N + Triangle<N - 1>::value;
}};
template <>
struct Triangle<0> {{
  static constexpr long value = 0;
}};

template <typename Number>
std::map<std::string, std::vector<Number>> ByText(const std::set<Number>& numbers) {{
  std::map<std::string, std::vector<Number>> grouped;
  for (Number number : numbers) {{
    std::ostringstream text;
    text << number % 7;
    grouped[text.str()].push_back(number);
  }}
  return grouped;
}}

}}  // namespace

long unit{unit}(long seed) {{
  std::set<long> residues;
  for (long i = 0; i < {RESIDUES}; ++i) residues.insert((seed * {step} + i * {stride}) % {modulus});
  long value = Triangle<{unit + 3}>::value + {addend};
  for (const auto& group : ByText(residues)) {{
    value += std::accumulate(group.second.begin(), group.second.end(), 0L);
  }}
{extra}  return value % {MODULUS};
}}

}}  // namespace {name}
"""


def _app_build() -> str:
    deps = "".join(f'        "//{library_name(library)}",\n' for library in range(LIBRARIES))
    return f"""load("@rules_cc//cc:defs.bzl", "cc_binary")

cc_binary(
    name = "main",
    srcs = ["main.cc"],
    visibility = ["//visibility:public"],
    deps = [
{deps}    ],
)
"""


def _app_source() -> str:
    names = [library_name(library) for library in range(LIBRARIES)]
    includes = "".join(f'#include "{name}/{name}.h"\n' for name in names)
    sums = "".join(f"  for (auto unit : {name}::kAll) total += unit(1);\n" for name in names)
    return f"""#include <iostream>

{includes}
int main() {{
  long total = 0;
{sums}  std::cout << "total=" << total << "\\n";
}}
"""


if __name__ == "__main__":
    from integration.workspace import lay_out_workspace

    lay_out_workspace("cpp", Path(sys.argv[1]))
