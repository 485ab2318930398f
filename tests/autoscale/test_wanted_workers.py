"""The number of workers that the cluster's own autoscalers are told, and what they may ask about."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cas.errors import MalformedRequest
from protos.rexec.scheduler.v1 import autoscaling_pb2
from rexec.asked_pool import KEYS, MAX_CHARACTERS, OF_KEDA, AskedPool, asked_pool
from rexec.wanted_workers import MAX_REMEMBERED, WantedWorkers
from tests.autoscale.fleet import offered, waiting

LINUX = asked_pool({"pool": "linux"})
OFFER = {"OSFamily": ["Linux", "linux"], "Pool": "linux"}


def snapshot(
    work: Sequence[autoscaling_pb2.WaitingWork] = (),
    workers: Sequence[autoscaling_pb2.AttachedWorker] = (),
    offers: Sequence[autoscaling_pb2.Offered] = (),
) -> autoscaling_pb2.ToAutoscaler:
    return autoscaling_pb2.ToAutoscaler(waiting=work, workers=workers, offers=offers or [offered(OFFER)])


def attached(name: str = "a", busy: int = 0, **fields: object) -> autoscaling_pb2.AttachedWorker:
    found = autoscaling_pb2.AttachedWorker(name=name, slots=1, busy_slots=busy, leases=busy)
    found.MergeFrom(autoscaling_pb2.AttachedWorker(**fields))  # type: ignore[arg-type]
    return found


def wanted(asked: AskedPool, said: autoscaling_pb2.ToAutoscaler, source: WantedWorkers | None = None) -> int:
    return (source or WantedWorkers()).figures(asked, said).wanted_workers


# How many


def test_a_pool_without_work_wants_no_worker_and_is_not_active() -> None:
    source = WantedWorkers()
    for said in (snapshot(), snapshot(workers=[attached()])):
        assert wanted(LINUX, said, source) == 0
        assert not source.is_active(LINUX, said)


def test_work_that_waits_is_turned_into_workers_as_the_policy_does_it() -> None:
    # 30 actions of 4 s within 10 s: 12 at once.
    assert wanted(LINUX, snapshot([waiting(30, 4)])) == 12
    assert wanted(asked_pool({"pool": "linux", "slotsPerWorker": "4"}), snapshot([waiting(30, 4)])) == 3
    assert wanted(asked_pool({"pool": "linux", "targetWaitSeconds": "60"}), snapshot([waiting(30, 4)])) == 2


def test_workers_that_run_something_are_wanted_and_idle_ones_are_used_before_more_are() -> None:
    busy = [attached("a", 1, rest_seconds=600), attached("b", 1, rest_seconds=600)]
    assert wanted(LINUX, snapshot(workers=[*busy, attached("idle")])) == 2
    assert wanted(LINUX, snapshot([waiting(1, 60)], [*busy, attached("idle")])) == 3
    assert wanted(LINUX, snapshot([waiting(3, 60)], [*busy, attached("idle")])) == 5


def test_the_figure_stays_while_workers_are_on_their_way_and_when_they_have_come() -> None:
    work = waiting(8, 60)
    before = wanted(LINUX, snapshot([work]))
    late = autoscaling_pb2.WaitingWork()
    late.CopyFrom(work)
    late.oldest_seconds = 300
    assert before == 8
    assert wanted(LINUX, snapshot([late])) == before
    running = [attached(f"w{number}", 1, rest_seconds=60) for number in range(8)]
    assert wanted(LINUX, snapshot(workers=running)) == before


def test_work_that_is_late_beside_a_free_slot_that_is_too_small_gets_another_worker() -> None:
    half_full = attached("a", slots=2, busy_slots=1, leases=1, rest_seconds=600)
    work = waiting(1, 60)
    assert wanted(LINUX, snapshot([work], [half_full])) == 1
    work.oldest_seconds = 30
    assert wanted(LINUX, snapshot([work], [half_full])) == 2


def test_one_whose_stream_is_broken_is_wanted_and_one_that_leaves_is_not() -> None:
    assert wanted(LINUX, snapshot(workers=[attached(away=True)])) == 1
    source, leaves = WantedWorkers(), snapshot(workers=[attached(busy=1, draining=True)])
    assert wanted(LINUX, leaves, source) == 0
    assert source.is_active(LINUX, leaves)


def test_work_of_another_kind_is_not_counted() -> None:
    large, any_ = waiting(8, 60, {"Pool": "large"}), waiting(3, 60, {"OSFamily": "linux"})
    figures = WantedWorkers().figures(LINUX, snapshot([large, any_]))
    assert (figures.wanted_workers, figures.waiting_tasks, figures.waiting_slot_seconds) == (3, 3, 180)
    assert wanted(asked_pool({"pool": "large"}), snapshot([large])) == 8
    assert not WantedWorkers().is_active(LINUX, snapshot([large]))


def test_workers_of_another_kind_are_not_counted() -> None:
    others = [attached("a", 1, offer=1), attached("b", 1, offer=2), attached("c", 1, offer=9)]
    offers = [offered(OFFER), offered({"Pool": "large"}), offered(OFFER, instance_names=["other"])]
    asked = asked_pool({"pool": "linux", "instance": "main"})
    figures = WantedWorkers().figures(asked, snapshot(workers=[*others, attached("mine", 1)], offers=offers))
    assert (figures.wanted_workers, figures.busy_slots) == (1, 1)


def test_work_of_another_instance_is_not_counted_for_workers_of_one() -> None:
    theirs, mine = waiting(5, 60), waiting(2, 60)
    theirs.instance_name, mine.instance_name = "theirs", "mine"
    assert wanted(asked_pool({"instance": "mine"}), snapshot([theirs, mine])) == 2
    assert wanted(asked_pool({}), snapshot([theirs, mine])) == 7


def test_tasks_that_a_limit_holds_up_are_not_counted() -> None:
    work = waiting(10, 60)
    work.limited_tasks = 9
    assert wanted(LINUX, snapshot([work])) == 1
    work.limited_tasks = 10
    assert not WantedWorkers().is_active(LINUX, snapshot([work]))


def test_what_workers_find_out_of_themselves_is_remembered_when_none_is_left() -> None:
    source = WantedWorkers()
    needs_gcc = waiting(2, 60, {"gcc": "12", "Pool": "linux"})
    assert wanted(LINUX, snapshot([needs_gcc]), source) == 0
    has_gcc = offered({**OFFER, "gcc": "12"}, cpu_millis=2000)
    seen = snapshot(workers=[attached(slots=2)], offers=[has_gcc])
    assert wanted(LINUX, seen, source) == 0
    assert wanted(LINUX, snapshot([needs_gcc]), source) == 1  # of two slots, as it had
    needs_gcc.cpu_millis = 4000
    assert wanted(LINUX, snapshot([needs_gcc]), source) == 0


def test_only_so_many_pools_are_remembered_those_asked_about_last() -> None:
    source = WantedWorkers()
    seen = snapshot(workers=[attached(slots=4)])
    work = snapshot([waiting(4, 60)])
    assert source.figures(LINUX, seen).wanted_workers == 0
    assert source.figures(LINUX, work).wanted_workers == 1
    for number in range(MAX_REMEMBERED):
        source.figures(asked_pool({"pool": str(number)}), seen)
    assert source.figures(LINUX, work).wanted_workers == 4


def test_enormous_figures_are_no_trouble() -> None:
    assert wanted(LINUX, snapshot([waiting(2**31 - 1, 1.0)])) > 10_000
    work = waiting(1, float("inf"))
    assert wanted(LINUX, snapshot([work])) == 1


# What may be asked


def test_all_keys_are_understood() -> None:
    said = {
        "pool": "linux",
        "properties": "OSFamily=linux, gpu=a100=80",
        "property.image": "a,b=c",
        "instance": "",
        "slotsPerWorker": "4",
        "targetWaitSeconds": "2.5",
        "startSeconds": "0",
    }
    pairs = {("Pool", "linux"), ("OSFamily", "linux"), ("gpu", "a100=80"), ("image", "a,b=c")}
    assert asked_pool(said) == AskedPool(frozenset(pairs), "", 4, 2.5, 0.0)
    assert set(said) | {"property.NAME"} == {*KEYS, "property.image"}


def test_what_keda_reads_itself_is_passed_over() -> None:
    assert asked_pool(dict.fromkeys(OF_KEDA, "x")) == AskedPool()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pool", ""),
        ("slotPerWorker", "4"),
        ("slotsPerWorker", "0"),
        ("slotsPerWorker", "-1"),
        ("slotsPerWorker", "4.5"),
        ("slotsPerWorker", "²"),
        ("slotsPerWorker", "9" * 5000),
        ("targetWaitSeconds", "0"),
        ("targetWaitSeconds", "nan"),
        ("targetWaitSeconds", "inf"),
        ("targetWaitSeconds", "soon"),
        ("startSeconds", "-1"),
        ("startSeconds", "1e300"),
        ("properties", "linux"),
        ("properties", "=linux"),
        ("properties", ",".join(f"n{number}=v" for number in range(101))),
        ("property.", "x"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_key(key: str, value: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        asked_pool({"scalerAddress": "rexec:8980", key: value})
    assert key.removesuffix("s") in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_more_text_than_anybody_needs_is_refused() -> None:
    with pytest.raises(MalformedRequest, match=str(MAX_CHARACTERS)):
        asked_pool({"pool": "x" * MAX_CHARACTERS})
