"""Who carries out the commands, and who answers the queries.

A command's session is committed when its handler returns. An exception is the command's outcome:
nothing is committed. A rule's refusal is a `Refusal`: one line in the log at info, and the result.
"""

from __future__ import annotations

from cqrs_celery import Session, command_handler, query_handler
from sample_app import read_model
from sample_app.commands import (
    CheckInItems,
    CreateItem,
    DeactivateItem,
    ItemDetails,
    ListItems,
    RemoveItems,
    RenameItem,
)
from sample_app.domain import AlreadyExists, InventoryItem
from sample_app.read_model import StockRow


@command_handler(CreateItem)
def create_item(command: CreateItem, session: Session) -> None:
    if session.find(InventoryItem, command.id):
        raise AlreadyExists(f"{command.id} has been created before")
    session.add(InventoryItem.create(command.id, command.name))


@command_handler(RenameItem)
def rename_item(command: RenameItem, session: Session) -> None:
    session.get(InventoryItem, command.id).rename(command.name)


@command_handler(CheckInItems)
def check_in_items(command: CheckInItems, session: Session) -> None:
    session.get(InventoryItem, command.id).check_in(command.count)


@command_handler(RemoveItems)
def remove_items(command: RemoveItems, session: Session) -> None:
    session.get(InventoryItem, command.id).remove(command.count)


@command_handler(DeactivateItem)
def deactivate_item(command: DeactivateItem, session: Session) -> None:
    session.get(InventoryItem, command.id).deactivate()


@query_handler(ItemDetails)
def item_details(query: ItemDetails) -> StockRow | None:
    return read_model.find(query.id)


@query_handler(ListItems)
def list_items(query: ListItems) -> list[StockRow]:
    return read_model.rows()
