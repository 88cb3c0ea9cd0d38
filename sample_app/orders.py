"""Make commands of the shop's orders."""

from __future__ import annotations

from sample_app.commands import CheckInItems, CreateItem, DeactivateItem, RemoveItems, RenameItem
from sample_app.data import Order

Command = CreateItem | RenameItem | CheckInItems | RemoveItems | DeactivateItem


def command_of(order: Order) -> Command:
    """Return the command for an order in the shop's own words."""
    match order:
        case {"do": "create", "item": item, "name": name}:
            return CreateItem(id=item, name=name)
        case {"do": "rename", "item": item, "name": name}:
            return RenameItem(id=item, name=name)
        case {"do": "deliver", "item": item, "count": count}:
            return CheckInItems(id=item, count=count)
        case {"do": "sell", "item": item, "count": count}:
            return RemoveItems(id=item, count=count)
        case {"do": "deactivate", "item": item}:
            return DeactivateItem(id=item)
    raise ValueError(f"the shop knows no such order: {order}")
