"""What the shop can be asked to do, and to tell.

A command's name is its Celery task's name; its first segment gives the queue, `inventory.commands`.
Commands to one item are handled in the order in which they were sent, one at a time.
"""

from __future__ import annotations

from cqrs_celery import Command, Query
from sample_app.domain import InventoryItem


class CreateItem(Command, name="inventory.create_item", aggregate=InventoryItem, key="id"):
    id: str
    name: str


class RenameItem(Command, name="inventory.rename_item", aggregate=InventoryItem, key="id"):
    id: str
    name: str


class CheckInItems(Command, name="inventory.check_in_items", aggregate=InventoryItem, key="id"):
    id: str
    count: int


class RemoveItems(Command, name="inventory.remove_items", aggregate=InventoryItem, key="id"):
    id: str
    count: int


class DeactivateItem(Command, name="inventory.deactivate_item", aggregate=InventoryItem, key="id"):
    id: str


class ItemDetails(Query):
    """Ask for an item's row; the answer is None if there is none."""

    id: str


class ListItems(Query):
    """Ask for the rows of all items, by id."""
