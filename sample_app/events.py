"""What can happen to an item.

Events are stored under these names for ever, so the names are written out: a class may then be
renamed or moved in Python.
"""

from __future__ import annotations

from cqrs_celery import Event


class ItemCreated(Event, name="inventory.item_created"):
    name: str


class ItemRenamed(Event, name="inventory.item_renamed"):
    name: str


class ItemsCheckedIn(Event, name="inventory.items_checked_in"):
    count: int


class ItemsRemoved(Event, name="inventory.items_removed"):
    count: int


class ItemDeactivated(Event, name="inventory.item_deactivated"):
    """It is no longer traded."""
