"""Reach the CQRS application that `celery -A` names, and its event store."""

from __future__ import annotations

from typing import Any

import click

from ..store.capabilities import capabilities_of, place_of
from ..store.relay_ports import SqlTablesStore


def cqrs_of(context: click.Context) -> Any:
    """Return the application's `CQRS`.

    Raises:
        click.UsageError: it has none.
    """
    app: Any = context.obj.app
    cqrs = getattr(app, "cqrs", None)
    if cqrs is None:
        raise click.UsageError(f"{app.main} has no CQRS: make one with CQRS(app)")
    return cqrs


def sql_store_of(context: click.Context, *, otherwise: str) -> SqlTablesStore:
    """Return the application's SQL event store; its broker is neither needed nor checked.

    Args:
        context: the command's context, which holds the application.
        otherwise: what is so with every other store: "has no tables".

    Raises:
        click.UsageError: the application has no `CQRS`, or its store is in no SQL database.
        InvalidSetting: a setting of the store's is wrong.
    """
    store = cqrs_of(context).bare_store
    tables = capabilities_of(store).tables
    if tables is None:
        raise click.UsageError(
            f"the event store of {context.obj.app.main} is in no SQL database, and {otherwise}:"
            f" {place_of(store)}"
        )
    return tables
