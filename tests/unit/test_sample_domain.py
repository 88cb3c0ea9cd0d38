"""The sample's rules, in the words of its events; and its data, whose computation has the same."""

from __future__ import annotations

import pytest

from cqrs_celery import Event, Refusal
from cqrs_celery.testing import given, when
from sample_app import expected
from sample_app.commands import CheckInItems, CreateItem
from sample_app.data import SHOP, read_orders
from sample_app.data.generate import lines
from sample_app.domain import (
    BlankName,
    CountNotPositive,
    Deactivated,
    InventoryItem,
    NotEnoughInStock,
    StillInStock,
)
from sample_app.events import (
    ItemCreated,
    ItemDeactivated,
    ItemRenamed,
    ItemsCheckedIn,
    ItemsRemoved,
)
from sample_app.orders import command_of


def bolt(*history: Event):
    return given(InventoryItem, "bolt", ItemCreated(name="Bolt"), *history)


def test_an_item_is_created_with_its_name() -> None:
    when(InventoryItem.create, "bolt", "Bolt").then(ItemCreated(name="Bolt"))


@pytest.mark.parametrize("name", ["", "  ", "\t\n"])
def test_a_blank_name_is_refused(name: str) -> None:
    when(InventoryItem.create, "bolt", name).raises(BlankName)
    bolt().when(InventoryItem.rename, name).raises(BlankName)


def test_an_item_is_renamed() -> None:
    outcome = bolt().when(InventoryItem.rename, "Nut").then(ItemRenamed(name="Nut"))
    assert outcome.aggregate.name == "Nut"


def test_items_are_checked_in() -> None:
    outcome = bolt(ItemsCheckedIn(count=2)).when(InventoryItem.check_in, 5)
    outcome.then(ItemsCheckedIn(count=5))
    assert outcome.aggregate.count == 7


@pytest.mark.parametrize("count", [0, -1])
def test_nothing_or_less_is_not_moved(count: int) -> None:
    bolt().when(InventoryItem.check_in, count).raises(CountNotPositive)
    bolt(ItemsCheckedIn(count=9)).when(InventoryItem.remove, count).raises(CountNotPositive)


def test_all_that_is_in_stock_may_be_removed() -> None:
    outcome = bolt(ItemsCheckedIn(count=5)).when(InventoryItem.remove, 5)
    outcome.then(ItemsRemoved(count=5))
    assert outcome.aggregate.count == 0


def test_more_than_is_in_stock_is_not_removed() -> None:
    history = (ItemsCheckedIn(count=5), ItemsRemoved(count=1))
    bolt(*history).when(InventoryItem.remove, 5).raises(
        NotEnoughInStock, match="5 wanted, 4 in stock"
    )


def test_an_item_that_is_sold_out_is_deactivated() -> None:
    history = (ItemsCheckedIn(count=5), ItemsRemoved(count=5))
    bolt(*history).when(InventoryItem.deactivate).then(ItemDeactivated())


def test_an_item_in_stock_is_not_deactivated() -> None:
    bolt(ItemsCheckedIn(count=5)).when(InventoryItem.deactivate).raises(StillInStock)


@pytest.mark.parametrize(
    "action",
    [
        lambda item: item.rename("Nut"),
        lambda item: item.check_in(1),
        lambda item: item.remove(1),
        lambda item: item.deactivate(),
    ],
)
def test_nothing_is_done_to_a_deactivated_item(action) -> None:
    bolt(ItemDeactivated()).when(action).raises(Deactivated)


def test_every_refusal_is_one_of_the_shops_rules() -> None:
    for reason in (BlankName, CountNotPositive, Deactivated, NotEnoughInStock, StillInStock):
        assert issubclass(reason, Refusal)


# ------------------------------------------------------------ the data


def test_the_data_file_is_what_its_generator_makes() -> None:
    assert SHOP.read_text(encoding="utf-8") == "".join(lines())


def test_the_data_file_is_small_uneven_and_holds_every_refusal() -> None:
    orders = read_orders()
    result = expected.compute(orders)
    assert 3_000 <= len(orders) <= 4_000
    assert SHOP.stat().st_size < 400_000
    assert set(result.refused) == {
        "AggregateNotFound",
        "AlreadyExists",
        "BlankName",
        "CountNotPositive",
        "Deactivated",
        "NotEnoughInStock",
        "StillInStock",
    }
    # the ten items that are wanted most have half of all events
    versions = sorted((item.version for item in result.items.values()), reverse=True)
    assert sum(versions[:10]) > sum(versions) / 2
    assert len(versions) > 100


def test_an_order_becomes_a_command_in_the_applications_words() -> None:
    create = command_of({"do": "create", "item": "bolt", "name": "Bolt"})
    assert create == CreateItem(id="bolt", name="Bolt")
    deliver = command_of({"do": "deliver", "item": "bolt", "count": 5})
    assert deliver == CheckInItems(id="bolt", count=5)
    with pytest.raises(ValueError, match="no such order"):
        command_of({"do": "lose", "item": "bolt"})


def test_the_direct_computation_follows_the_same_rules_as_the_domain() -> None:
    # given the shop's orders, carried out on aggregates without any library in between
    items: dict[str, InventoryItem] = {}
    for order in read_orders():
        item = items.get(order["item"])
        try:
            match order["do"]:
                case "create" if item is None:
                    items[order["item"]] = InventoryItem.create(order["item"], order["name"])
                case "rename" if item:
                    item.rename(order["name"])
                case "deliver" if item:
                    item.check_in(order["count"])
                case "sell" if item:
                    item.remove(order["count"])
                case "deactivate" if item:
                    item.deactivate()
        except Refusal:
            pass
    # then both have the same in stock
    computed = expected.compute(read_orders()).items
    assert items.keys() == computed.keys()
    for name, item in items.items():
        there = computed[name]
        assert (item.name, item.count, item.is_active) == (
            there.name,
            there.count,
            there.is_active,
        )
