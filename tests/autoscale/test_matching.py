"""Which pool can run which work."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rexec.autoscale.matching import Offers, cheapest_first, fits, slots_taken, tasks_at_once
from rexec.autoscale.view import Offer
from tests.autoscale.views import LINUX, pool, work


def test_every_property_that_is_asked_for_must_be_offered() -> None:
    offer = Offer(LINUX | {("gpu", "a100")}, slots=2)
    assert fits(work(1, 1), offer)
    assert fits(work(1, 1, pairs=frozenset({("gpu", "a100")})), offer)
    assert not fits(work(1, 1, pairs=frozenset({("gpu", "h100")})), offer)
    assert not fits(work(1, 1, pairs=LINUX | {("pool", "fast")}), offer)


def test_a_star_takes_every_value_of_its_name_and_of_no_other() -> None:
    offer = Offer(frozenset({("container-image", "*")}))
    assert fits(work(1, 1, pairs=frozenset({("container-image", "debian:12")})), offer)
    assert not fits(work(1, 1, pairs=frozenset({("image", "debian:12")})), offer)


def test_workers_of_some_instances_serve_no_others() -> None:
    offer = Offer(LINUX, frozenset({"team"}))
    assert fits(work(1, 1, instance_name="team"), offer)
    assert not fits(work(1, 1, instance_name="other"), offer)
    assert not fits(work(1, 1, instance_name=""), offer)


def test_what_is_used_up_first_says_how_many_run_at_once() -> None:
    offer = Offer(LINUX, slots=8, cpu_millis=8000, memory_bytes=16 << 30)
    assert tasks_at_once(work(1, 1), offer) == 8
    assert tasks_at_once(work(1, 1, slots=3), offer) == 2
    assert tasks_at_once(work(1, 1, cpu_millis=2000), offer) == 4
    assert tasks_at_once(work(1, 1, cpu_millis=2000, memory_bytes=10 << 30), offer) == 1


def test_a_task_larger_than_a_worker_does_not_fit() -> None:
    offer = Offer(LINUX, slots=4, cpu_millis=4000, memory_bytes=8 << 30)
    assert not fits(work(1, 1, slots=5), offer)
    assert not fits(work(1, 1, cpu_millis=4001), offer)
    assert not fits(work(1, 1, memory_bytes=(8 << 30) + 1), offer)


def test_what_a_pool_does_not_count_is_no_limit() -> None:
    assert tasks_at_once(work(1, 1, cpu_millis=64_000, memory_bytes=1 << 50), Offer(LINUX, slots=2)) == 2


def test_a_task_takes_the_slots_that_its_memory_keeps_others_out_of() -> None:
    offer = Offer(LINUX, slots=8, memory_bytes=16 << 30)
    assert slots_taken(work(1, 1, memory_bytes=7 << 30), offer) == 4


def test_pools_are_compared_by_the_price_of_a_slot_then_by_the_configurations_order() -> None:
    large = pool("large", slots=32, price_per_hour=1.6)
    small = pool("small", slots=2, price_per_hour=0.2)
    other = pool("other", slots=4, price_per_hour=0.2)
    assert [one.name for one in cheapest_first(work(1, 1), [small, large, other])] == ["large", "other", "small"]
    assert [one.name for one in cheapest_first(work(1, 1, slots=3), [small, large, other])] == ["large", "other"]


def test_a_pool_is_dear_for_what_fills_its_workers_memory() -> None:
    little = pool("little", price_per_hour=0.2, offer=Offer(LINUX, slots=4, memory_bytes=8 << 30))
    much = pool("much", price_per_hour=0.3, offer=Offer(LINUX, slots=4, memory_bytes=32 << 30))
    assert [one.name for one in cheapest_first(work(1, 1), [much, little])] == ["little", "much"]
    assert [one.name for one in cheapest_first(work(1, 1, memory_bytes=8 << 30), [little, much])] == ["much", "little"]


PAIRS = st.frozensets(st.tuples(st.sampled_from("ab"), st.sampled_from("xy*")))


@given(PAIRS, st.lists(PAIRS, max_size=6))
def test_what_is_not_looked_at_fits_not(
    asked: frozenset[tuple[str, str]], offered: list[frozenset[tuple[str, str]]]
) -> None:
    pools = [pool(str(number), pairs=pairs) for number, pairs in enumerate(offered)]
    one = work(1, 1, pairs=asked)
    possible = Offers(pools).possible(one)
    assert [each for each in possible if fits(one, each.offer)] == [each for each in pools if fits(one, each.offer)]


def test_work_for_one_image_is_compared_with_the_pool_of_that_image_alone() -> None:
    pools = [pool(str(number), pairs=LINUX | {("container-image", str(number))}) for number in range(50)]
    (found,) = Offers(pools).possible(work(1, 1, pairs=LINUX | {("container-image", "7")}))
    assert found.name == "7"
