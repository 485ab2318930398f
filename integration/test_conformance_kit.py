"""The kit's own verdicts and reports: a kit that calls a failure anything else proves nothing."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from grpc import aio

from integration.conformance.all_cases import CASES
from integration.conformance.case import Case, Failed, NotSupported, Phase, Run
from integration.conformance.client import Client
from integration.conformance.options import HookFailed, Options, shell_hook
from integration.conformance.report import as_json, write_junit
from integration.conformance.runner import Outcome, Verdict, chosen, judged
from integration.server import Server, free_port

_CHECKOUT = Path(__file__).parent.parent


def _case(run: Run, *, execution: bool = False, timeout_seconds: float = 20) -> Case:
    return Case(1, "claims", run, execution, Phase.SHARED, False, timeout_seconds)


async def _judged(case: Case) -> Outcome:
    options = Options(target=f"127.0.0.1:{free_port()}")
    async with aio.insecure_channel(options.target) as channel:
        return await judged(case, Client(channel, options), options)


def _raising(error: Exception) -> Run:
    async def run(_client: Client) -> None:
        raise error

    return run


async def test_what_a_case_raises_decides_the_verdict() -> None:
    async def fine(_client: Client) -> None:
        """Does what it claims."""

    wrong = Failed("expected 1, got 2")
    for run, verdict, reason in (
        (fine, Verdict.PASS, ""),
        (_raising(wrong), Verdict.FAIL, "expected 1, got 2"),
        (_raising(ExceptionGroup("several", [ExceptionGroup("more", [wrong])])), Verdict.FAIL, "expected 1, got 2"),
        (_raising(HookFailed("the hook broke")), Verdict.FAIL, "the hook broke"),
        (_raising(KeyError("digest")), Verdict.FAIL, "the answers cannot be understood: KeyError: 'digest'"),
        (_raising(NotSupported("no brotli")), Verdict.NOT_SUPPORTED, "no brotli"),
    ):
        outcome = await _judged(_case(run))
        assert (outcome.verdict, outcome.reason) == (verdict, reason)


async def test_a_case_without_end_fails_at_its_bound() -> None:
    async def endless(_client: Client) -> None:
        await asyncio.Event().wait()

    outcome = await _judged(_case(endless, timeout_seconds=0.05))
    assert (outcome.verdict, outcome.reason) == (Verdict.FAIL, "not done after 0.05 s")


async def test_an_unimplemented_method_is_a_failure_and_not_an_excuse(rexec_server: Server) -> None:
    async def unimplemented(client: Client) -> None:
        await client.raw("/build.bazel.remote.execution.v2.ActionCache/NoSuchMethod", b"")

    options = Options(target=rexec_server.address)
    async with aio.insecure_channel(options.target) as channel:
        outcome = await judged(_case(unimplemented), Client(channel, options), options)
    assert outcome.verdict is Verdict.FAIL
    assert "UNIMPLEMENTED" in outcome.reason


async def test_a_server_without_execution_is_not_held_to_it() -> None:
    outcome = await _judged(_case(_raising(Failed("ran")), execution=True))
    assert (outcome.verdict, outcome.reason) == (Verdict.NOT_SUPPORTED, "execution is not advertised")


async def test_a_hook_gets_its_values_and_its_failure_is_told() -> None:
    await shell_hook('test "$MARKER" = here')({"MARKER": "here"})
    with pytest.raises(HookFailed, match="ended with 3: said why"):
        await shell_hook("echo said why; exit 3")({})


def test_every_behaviour_has_a_case_and_every_case_a_rule() -> None:
    assert {case.number for case in CASES} == set(range(1, 56))
    assert [case.name for case in CASES if not (case.run.__doc__ or "").strip()] == []


def test_the_behaviours_asked_for_are_chosen() -> None:
    assert {case.number for case in chosen(CASES, frozenset({5, 39}), slow=False)} == {5, 39}
    with pytest.raises(ValueError, match="there is no behaviour 77"):
        chosen(CASES, frozenset({5, 77}), slow=False)


def test_reports_tell_each_verdict_with_its_reason(tmp_path: Path) -> None:
    case = _case(_raising(Failed("never run")))
    outcomes = [
        Outcome(case, Verdict.PASS, "", 0.5),
        Outcome(case, Verdict.FAIL, "got \x00 <&", 1.25),
        Outcome(case, Verdict.NOT_SUPPORTED, "needs --token", 0.0),
    ]
    assert [(entry["verdict"], entry["reason"]) for entry in json.loads(as_json(outcomes))] == [
        ("PASS", ""),
        ("FAIL", "got \x00 <&"),
        ("NOT SUPPORTED", "needs --token"),
    ]
    write_junit(outcomes, tmp_path / "junit.xml", "grpc://here")
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [[(child.tag, child.get("message")) for child in entry] for entry in suite] == [
        [],
        [("failure", "got \N{REPLACEMENT CHARACTER} <&")],
        [("skipped", "needs --token")],
    ]


def _kit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "integration.conformance", *arguments)
    return subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_runs_what_was_asked_for(rexec_server: Server, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    ended = _kit("--server", f"grpc://{rexec_server.address}", "--only", "40,53", "--junit", str(junit))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {line.split()[1] for line in ended.stdout.splitlines()[:-1]} == {"40", "53"}
    assert "0 FAIL" in ended.stdout.splitlines()[-1]
    assert junit.exists()


def test_the_exit_status_is_1_if_something_failed(rexec_server: Server) -> None:
    """A hook that breaks fails its case, and only that one."""
    ended = _kit("--server", rexec_server.address, "--only", "15", "--lose-worker-command", "exit 9", "--json")
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert [entry["verdict"] for entry in json.loads(ended.stdout)].count("FAIL") == 1


def test_a_server_that_does_not_answer_is_exit_status_2() -> None:
    ended = _kit("--server", f"grpc://127.0.0.1:{free_port()}", "--only", "53")
    assert ended.returncode == 2
    assert "does not answer GetCapabilities" in ended.stderr
