"""Make `shop.jsonl` again: `python -m sample_app.data.generate`.

Uneven, as shops are: a few items are wanted all the time, most hardly ever. About one order in
twenty breaks a rule.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import accumulate, product
from typing import Final

from sample_app.data import SHOP, Order

SEED: Final = 6
ORDERS: Final = 3_500
#: How likely an order is to break a rule.
MISTAKES: Final = 0.05

KINDS = ("Bolt", "Nut", "Washer", "Screw", "Anchor", "Hook", "Hinge", "Bracket", "Rivet", "Pin")
SIZES = ("M3", "M4", "M5", "M6", "M8", "M10", "M12", "M16")
FINISHES = ("steel", "brass")


class Shop:
    """Give orders, with an eye on what the shop has."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311  it is to be repeatable
        names = [
            f"{kind} {size}, {finish}" for kind, size, finish in product(KINDS, SIZES, FINISHES)
        ]
        self.random.shuffle(names)
        self.names = {_item(name): name for name in names}
        self.items = list(self.names)
        self.weights = list(accumulate(1 / rank for rank in range(1, len(self.items) + 1)))
        self.stock: dict[str, int] = {}
        self.retired: set[str] = set()

    def orders(self, number: int) -> Iterator[Order]:
        for _ in range(number):
            is_mistake = len(self.stock) > 20 and self.random.random() < MISTAKES
            yield self.mistake() if is_mistake else self.order()

    def order(self) -> Order:
        """Return an order that is in order."""
        (item,) = self.random.choices(self.items, cum_weights=self.weights)
        if item in self.retired:
            return self.order()
        if item not in self.stock:
            self.stock[item] = 0
            return {"do": "create", "item": item, "name": self.names[item]}
        there, chance = self.stock[item], self.random.random()
        if there == 0 and self.items.index(item) > 30 and chance < 0.25:
            self.retired.add(item)
            return {"do": "deactivate", "item": item}
        if chance < 0.02:
            name = f"{self.names[item]}, box of {self.random.choice((10, 25, 50, 100))}"
            return {"do": "rename", "item": item, "name": name}
        if there == 0 or chance < 0.3:
            count = self.random.randint(5, 60)
            self.stock[item] += count
            return {"do": "deliver", "item": item, "count": count}
        count = self.random.randint(1, min(there, 15))
        self.stock[item] -= count
        return {"do": "sell", "item": item, "count": count}

    def mistake(self) -> Order:
        """Return an order that a rule is against."""
        known = [item for item in self.items if item in self.stock and item not in self.retired]
        item = self.random.choice(known)
        there = self.stock[item]
        mistakes: list[Callable[[], Order]] = [
            lambda: {"do": "sell", "item": item, "count": there + self.random.randint(1, 20)},
            lambda: {"do": "sell", "item": item, "count": -self.random.randint(0, 3)},
            lambda: {"do": "deliver", "item": item, "count": -self.random.randint(0, 50)},
            lambda: {"do": "deliver", "item": f"{item}-x", "count": 5},
            lambda: {"do": "rename", "item": item, "name": "  "},
            lambda: {"do": "create", "item": item, "name": self.names[item]},
        ]
        if there:
            mistakes.append(lambda: {"do": "deactivate", "item": item})
        if self.retired:
            gone = self.random.choice(sorted(self.retired))
            mistakes.append(lambda: {"do": "deliver", "item": gone, "count": 10})
        return self.random.choice(mistakes)()


def lines() -> Iterator[str]:
    for order in Shop(SEED).orders(ORDERS):
        yield json.dumps(order) + "\n"


def _item(name: str) -> str:
    return name.lower().replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    SHOP.write_text("".join(lines()), encoding="utf-8")
