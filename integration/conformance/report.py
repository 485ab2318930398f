"""The outcomes as a table, as JSON and as JUnit XML."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from integration.conformance.runner import Outcome, Verdict

_COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.NOT_SUPPORTED: "yellow"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write; what a server says may hold any."""


def summary(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict)


def print_table(outcomes: Sequence[Outcome]) -> None:
    """A table with colours on a terminal, else one line a case."""
    if not sys.stdout.isatty():
        for outcome in outcomes:
            reason = f"  [{outcome.reason}]" if outcome.reason else ""
            print(f"{outcome.verdict:13}  {outcome.case.number:2}  {outcome.case.claim}{reason}")
        print(summary(outcomes))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "verdict", "behaviour", "s", show_lines=False)
    for outcome in outcomes:
        said = Text(outcome.case.claim)
        if outcome.reason:
            said.append(f"\n{outcome.reason}", style=_COLOURS[outcome.verdict])
        verdict = Text(outcome.verdict, style=_COLOURS[outcome.verdict])
        table.add_row(str(outcome.case.number), verdict, said, f"{outcome.seconds:.1f}")
    console = Console()
    console.print(table)
    console.print(summary(outcomes))


def as_json(outcomes: Sequence[Outcome]) -> str:
    """A list of objects."""
    return json.dumps(
        [
            {
                "behaviour": outcome.case.number,
                "claim": outcome.case.claim,
                "verdict": outcome.verdict,
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in outcomes
        ],
        indent=1,
    )


def write_junit(outcomes: Sequence[Outcome], path: Path, server: str) -> None:
    """JUnit XML, as CI systems read it; NOT SUPPORTED is a skipped test."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"REAPI conformance of {server}",
        tests=str(len(outcomes)),
        failures=str(sum(outcome.verdict is Verdict.FAIL for outcome in outcomes)),
        skipped=str(sum(outcome.verdict is Verdict.NOT_SUPPORTED for outcome in outcomes)),
        time=f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    )
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"behaviour-{outcome.case.number:02}",
            name=outcome.case.claim,
            time=f"{outcome.seconds:.3f}",
        )
        reason = _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", outcome.reason)
        if outcome.verdict is Verdict.FAIL:
            ElementTree.SubElement(case, "failure", message=reason)
        elif outcome.verdict is Verdict.NOT_SUPPORTED:
            ElementTree.SubElement(case, "skipped", message=reason)
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
