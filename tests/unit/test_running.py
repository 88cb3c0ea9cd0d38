"""What a consumer is running is told from what it has only prefetched by the order of delivery."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_celery.queue.running import Held, running


def held(*places: str) -> list[Held]:
    """Return deliveries in their order: "orders", or "orders/s" in the sequence s.

    The ids are 1, 2, … in this order, too.
    """
    found = []
    for number, place in enumerate(places, 1):
        queue, _, sequence = place.partition("/")
        found.append(Held(number, 2 * number, queue, sequence.encode()))
    return found


def ids(
    of: list[Held],
    slots: int,
    *,
    batches: Mapping[str, int] | None = None,
    firsts: Mapping[tuple[str, bytes], int] | None = None,
    tried: Iterable[int] = (),
) -> list[int]:
    """Return the ids of what is running, sorted."""
    found = running(of, slots=slots, batches=batches or {}, firsts=firsts or {}, tried=set(tried))
    return sorted(found)


@pytest.mark.parametrize(
    ("slots", "expected"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 3]), (0, [1, 2, 3])]
)
def test_running_are_the_oldest_deliveries_as_many_as_there_are_slots(
    slots: int, expected: list[int]
) -> None:
    assert ids(held("orders", "mail", "orders")[::-1], slots) == expected


def test_the_oldest_delivery_is_running_and_not_the_oldest_message() -> None:
    older, younger = Held(1, 20, "orders", b""), Held(2, 10, "orders", b"")
    assert ids([older, younger], 1) == [2]


@pytest.mark.parametrize("slots", [0, 2, 9])
def test_of_a_sequence_only_the_first_in_flight_runs(slots: int) -> None:
    assert ids(held("orders/a", "orders/a", "orders/b", "mail/a"), slots)[:2] == [1, 3]
    assert 2 not in ids(held("orders/a", "orders/a", "orders/b", "mail/a"), slots)


def test_the_sequence_s_own_order_says_which_is_the_first() -> None:
    assert ids(held("orders/a", "orders/a"), 1, firsts={("orders", b"a"): 2}) == [2]
    assert ids(held("orders/a", "orders/a"), 1, firsts={("orders", b"a"): 99}) == [1]


def test_a_batch_takes_one_slot_and_runs_whole() -> None:
    # given a batch of three and two more, then a plain message
    of = held("many", "many/a", "many", "many", "many", "orders")
    # then each slot has one delivery
    assert ids(of, 1, batches={"many": 3}) == [1, 2, 3]
    assert ids(of, 2, batches={"many": 3}) == [1, 2, 3, 4, 5]
    assert ids(of, 3, batches={"many": 3}) == [1, 2, 3, 4, 5, 6]


def test_a_batch_holds_what_follows_in_a_sequence_as_far_as_there_is_room() -> None:
    # given a sequence of which four are held; they were taken behind the first of another one
    of = held("many/a", "many/b", "many/a", "many/a", "many/a")
    # then its fourth must wait for the batch, and nobody runs it beside
    assert ids(of, 1, batches={"many": 3}) == [1, 3, 4]
    assert ids(of, 9, batches={"many": 3}) == [1, 2, 3, 4]


def test_what_was_delivered_before_is_alone_in_its_delivery() -> None:
    of = held("many", "many", "many")
    assert ids(of, 1, batches={"many": 3}, tried={1}) == [1]
    assert ids(of, 1, batches={"many": 3}, tried={2}) == [1, 3]


places = st.sampled_from(["orders", "many", "orders/a", "orders/b", "many/a", "many/b"])


@given(
    st.lists(places, max_size=30),
    st.integers(0, 5),
    st.integers(1, 4),
    st.sets(st.integers(1, 30)),
)
def test_every_slot_that_can_be_in_use_is_and_none_twice(
    names: list[str], slots: int, size: int, tried: set[int]
) -> None:
    # given anything that a consumer may hold
    of = held(*names)
    # when what it is running is told
    found = ids(of, slots, batches={"many": size}, tried=tried)
    # then as much runs as can, and no more
    plain = [one for one in of if one.queue == "orders" or one.id in tried or size == 1]
    assert set(found) <= {one.id for one in of}
    assert bool(found) == bool(of)
    assert len(found) <= (slots or len(of)) * size
    # and of each sequence that is handled one by one, only the first
    alone = Counter(
        (one.queue, one.sequence)
        for one in of
        if one.id in found and one.sequence and one.queue == "orders"
    )
    assert all(count == 1 for count in alone.values())
    if len(plain) == len(of) and not any(one.sequence for one in of):
        assert len(found) == min(slots or len(of), len(of))
    # and what is running does not depend on the order in which it was read
    assert found == ids(of[::-1], slots, batches={"many": size}, tried=tried)
    # and one slot more takes nothing from the others
    if slots:
        assert set(found) <= set(ids(of, slots + 1, batches={"many": size}, tried=tried))
