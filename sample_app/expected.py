"""What must come out, computed directly: one pass over the orders in plain Python.

Knows the shop's rules a second time and nothing of the library, so that the two can be compared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sample_app.data import Order


@dataclass
class Item:
    name: str
    count: int = 0
    is_active: bool = True
    version: int = 1


@dataclass
class Expected:
    """Hold each item by its id, and how many orders were refused, by the name of the reason."""

    items: dict[str, Item] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def events(self) -> int:
        return sum(item.version for item in self.items.values())


def compute(orders: Iterable[Order]) -> Expected:
    result = Expected()
    for order in orders:
        reason = _refusal(order, result.items.get(order["item"]))
        if reason:
            result.refused[reason] += 1
        else:
            _carry_out(order, result.items)
    return result


def _refusal(order: Order, item: Item | None) -> str:
    what, count, name = order["do"], order.get("count", 1), order.get("name", "-")
    if what == "create":
        return "AlreadyExists" if item else "" if name.strip() else "BlankName"
    if item is None:
        return "AggregateNotFound"
    if not item.is_active:
        return "Deactivated"
    if not name.strip():
        return "BlankName"
    if count <= 0:
        return "CountNotPositive"
    if what == "sell" and count > item.count:
        return "NotEnoughInStock"
    if what == "deactivate" and item.count:
        return "StillInStock"
    return ""


def _carry_out(order: Order, items: dict[str, Item]) -> None:
    if order["do"] == "create":
        items[order["item"]] = Item(order["name"])
        return
    item = items[order["item"]]
    item.version += 1
    match order["do"]:
        case "rename":
            item.name = order["name"]
        case "deliver":
            item.count += order["count"]
        case "sell":
            item.count -= order["count"]
        case "deactivate":
            item.is_active = False
