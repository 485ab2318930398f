"""What becomes of a worker's report before any client sees it.

A worker may be broken, or lie. A result whose blobs are not in the store is the worker's failure, not an answer. A good one
gets what REAPI wants to find in it and is written to the action cache, if it is worth that: exit code 0, status OK, and the
action does not forbid it.
"""

from __future__ import annotations

from typing import cast

import structlog
from google.rpc import error_details_pb2, status_pb2

from cas.action_cache import ActionKey, missing_of
from cas.errors import Code, FailedPrecondition, StatusError
from cas.instances import Instance, Instances
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2
from protos.rexec.worker.v1 import worker_pb2
from rexec.scheduler.clock import Clock
from rexec.scheduler.command import outputs_of
from rexec.scheduler.inputs import InputRoots
from rexec.scheduler.scheduler import Run
from rexec.scheduler.settling import Settled
from rexec.scheduler.task import Candidate, Failure, Outcome
from rexec.scheduler.wire import outcome_of

log = structlog.get_logger()

MAX_RESPONSE_BYTES = 3 << 20
"""What a worker makes of one action, about 20,000 outputs. With what is inlined it still fits the 4 MiB that every client
receives."""

MAX_LAST_WORDS_BYTES = 64 << 10
"""Of each stream of a command whose result could not be kept."""

_FAILURES = {
    worker_pb2.Finished.INFRASTRUCTURE: Failure.INFRASTRUCTURE,
    worker_pb2.Finished.BACK_PRESSURE: Failure.BACK_PRESSURE,
    worker_pb2.Finished.REVOKED: Failure.REVOKED,
}


class Results:
    """The `Settler` over the stores and action caches of all instances."""

    def __init__(self, instances: Instances, inputs: InputRoots, clock: Clock) -> None:
        self._instances = instances
        self._inputs = inputs
        self._clock = clock

    async def settle(self, candidate: Candidate, report: worker_pb2.Finished, worker_name: str) -> Settled:
        evidence = report.status.message or report.message
        if report.failure != worker_pb2.Finished.NONE:
            failure = _FAILURES.get(report.failure, Failure.INFRASTRUCTURE)
            return Settled(failure, self._last_words(candidate, report, worker_name), evidence[:1000])
        if not 0 <= report.status.code <= max(Code):
            return _broken(f"reported status {report.status.code}, which does not exist")
        if report.status.code == Code.OK and not report.HasField("action_result"):
            return _broken("reported success without a result")
        if any(detail.Is(error_details_pb2.PreconditionFailure.DESCRIPTOR) for detail in report.status.details):
            # An input was evicted after it was checked: the client uploads it again, and must then be believed nothing.
            self._inputs.forget(candidate.instance_name)
        undeclared = _undeclared(report.action_result, cast(Run, candidate.payload).command)
        if undeclared:
            return _broken(f"reported an output {undeclared[:200]!r} that the command does not declare")
        response = re_pb2.ExecuteResponse(message=report.message)
        if report.HasField("action_result"):
            response.result.CopyFrom(report.action_result)
            self._complete_metadata(response.result, candidate, worker_name)
        if report.status.code != Code.OK or report.status.message:
            response.status.CopyFrom(report.status)
        else:
            response.status.CopyFrom(status_pb2.Status())
        if response.ByteSize() > MAX_RESPONSE_BYTES:
            size_bytes = response.ByteSize()
            large = FailedPrecondition(f"the result takes {size_bytes} bytes, expected at most {MAX_RESPONSE_BYTES}")
            return Settled(Failure.NONE, Outcome(error=large))
        instance = self._instances.of(candidate.instance_name)
        try:
            missing = await missing_of(response.result, instance.store, candidate.action_digest.function)
        except StatusError as reason:
            return Settled(
                Failure.INFRASTRUCTURE, Outcome(), f"the result cannot be checked: {reason}", blames_worker=False
            )
        if missing:
            text = f"reported {len(missing)} outputs that are not in the store, such as {min(map(str, missing))}"
            # So it is at every attempt if the outputs are more than the store holds: a client must not go on with that.
            last = FailedPrecondition(
                f"the worker {text}; they may be larger together than [store] max_bytes of the server"
            )
            return Settled(Failure.INFRASTRUCTURE, Outcome(error=last), text)
        if report.status.code == Code.OK and response.result.exit_code == 0 and not candidate.do_not_cache:
            await self._cache(instance, candidate, response.result)
        return Settled(Failure.NONE, outcome_of(response))

    def _last_words(self, candidate: Candidate, report: worker_pb2.Finished, worker_name: str) -> Outcome:
        """What the clients are told if this failure was the last attempt: empty unless the worker knows that nobody should
        try again, as with a full disk. Nothing of it is in the store."""
        if report.status.code != Code.FAILED_PRECONDITION:
            return Outcome()
        # No details: they could make a client go on for ever.
        status = status_pb2.Status(code=int(Code.FAILED_PRECONDITION), message=report.status.message[:2000])
        response = re_pb2.ExecuteResponse(status=status, message=report.message[:2000])
        if report.HasField("action_result"):
            said = report.action_result
            response.result.exit_code = said.exit_code
            response.result.stdout_raw = said.stdout_raw[-MAX_LAST_WORDS_BYTES:]
            response.result.stderr_raw = said.stderr_raw[-MAX_LAST_WORDS_BYTES:]
            self._complete_metadata(response.result, candidate, worker_name)
        return outcome_of(response)

    def _complete_metadata(self, result: re_pb2.ActionResult, candidate: Candidate, worker_name: str) -> None:
        """Fill in what the worker left out of ExecutedActionMetadata. Buck2 refuses a result without it."""
        metadata = result.execution_metadata
        metadata.worker = metadata.worker or worker_name
        queued_at = cast(Run, candidate.payload).queued_at
        if not metadata.HasField("queued_timestamp"):
            metadata.queued_timestamp.FromNanoseconds(round(queued_at * 1e9))
        if not metadata.HasField("worker_completed_timestamp"):
            metadata.worker_completed_timestamp.FromNanoseconds(round(self._clock.wall() * 1e9))

    async def _cache(self, instance: Instance, candidate: Candidate, result: re_pb2.ActionResult) -> None:
        """Write the action cache. The action has succeeded, so a failure here costs a later run and no more."""
        try:
            await instance.action_cache.put(ActionKey(instance.name, candidate.action_digest), result)
        except StatusError as failure:
            log.warning("action cache not written", action=str(candidate.action_digest), reason=str(failure))


def _undeclared(result: re_pb2.ActionResult, command: re_pb2.Command) -> str:
    """A path of the result that is not as the command has it, "" if there is none. A client writes to the paths of a result,
    and has looked only at those that it asked for."""
    named = {output.path for output in result.output_files}
    named.update(output.path for output in result.output_directories)
    for links in (result.output_symlinks, result.output_file_symlinks, result.output_directory_symlinks):
        named.update(link.path for link in links)
    return min(named.difference(outputs_of(command)), default="")


def _broken(evidence: str) -> Settled:
    return Settled(Failure.INFRASTRUCTURE, Outcome(), evidence)
