"""What the shop decides about an item, and by which rules.

A method checks the rules, then records what was decided. An `applies` method only sets attributes:
it runs again whenever the item is rebuilt from its events.
"""

from __future__ import annotations

from cqrs_celery import Aggregate, Refusal, applies
from sample_app.events import (
    ItemCreated,
    ItemDeactivated,
    ItemRenamed,
    ItemsCheckedIn,
    ItemsRemoved,
)


class AlreadyExists(Refusal):
    """The item has been created before."""


class BlankName(Refusal):
    """An item needs a name."""


class CountNotPositive(Refusal):
    """Nothing, or less, can't be moved."""

    count: int


class NotEnoughInStock(Refusal):
    """More is wanted than is there."""

    wanted: int
    found: int


class StillInStock(Refusal):
    """What is in stock is still traded."""


class Deactivated(Refusal):
    """The item is no longer traded."""


class InventoryItem(Aggregate):
    name: str = ""
    count: int = 0
    is_active: bool = True

    @classmethod
    def create(cls, id: str, name: str) -> InventoryItem:
        item = cls(id)
        item.record(ItemCreated(name=_checked_name(name)))
        return item

    def rename(self, name: str) -> None:
        self._check_active()
        self.record(ItemRenamed(name=_checked_name(name)))

    def check_in(self, count: int) -> None:
        self._check_active()
        self.record(ItemsCheckedIn(count=_checked_count(count)))

    def remove(self, count: int) -> None:
        self._check_active()
        if _checked_count(count) > self.count:
            raise NotEnoughInStock(
                f"{self.id}: {count} wanted, {self.count} in stock", wanted=count, found=self.count
            )
        self.record(ItemsRemoved(count=count))

    def deactivate(self) -> None:
        self._check_active()
        if self.count:
            raise StillInStock(f"{self.id}: {self.count} in stock; remove them first")
        self.record(ItemDeactivated())

    def _check_active(self) -> None:
        if not self.is_active:
            raise Deactivated(f"{self.id} is no longer traded")

    @applies(ItemCreated, ItemRenamed)
    def _named(self, event: ItemCreated | ItemRenamed) -> None:
        self.name = event.name

    @applies(ItemsCheckedIn)
    def _checked_in(self, event: ItemsCheckedIn) -> None:
        self.count += event.count

    @applies(ItemsRemoved)
    def _removed(self, event: ItemsRemoved) -> None:
        self.count -= event.count

    @applies(ItemDeactivated)
    def _deactivated(self, event: ItemDeactivated) -> None:
        self.is_active = False


def _checked_name(name: str) -> str:
    if not name.strip():
        raise BlankName("an item needs a name")
    return name


def _checked_count(count: int) -> int:
    if count <= 0:
        raise CountNotPositive(f"at least 1 item can be moved, not {count}", count=count)
    return count
