"""Find the CQRS application that `celery -A` names, and its event store."""

from __future__ import annotations

from typing import Any

import click

from ..store.capabilities import capabilities_of, place_of
from ..store.relay_ports import SqlTablesStore


def cqrs_of(context: click.Context) -> Any:
    """Return the application's `CQRS`.

    Raises:
        click.UsageError: the application has no `CQRS`.
    """
    app: Any = context.obj.app
    cqrs = getattr(app, "cqrs", None)
    if cqrs is None:
        raise click.UsageError(f"{app.main} has no CQRS: create one with CQRS(app)")
    return cqrs


def sql_store_of(context: click.Context, *, otherwise: str) -> SqlTablesStore:
    """Return the application's SQL event store. The broker is neither needed nor checked.

    Args:
        context: the command's context, which holds the application.
        otherwise: a fact about all other stores, for the error: "has no tables".

    Raises:
        click.UsageError: the application has no `CQRS`, or its store is not in a SQL database.
        InvalidSetting: a setting of the store is wrong.
    """
    store = cqrs_of(context).bare_store
    tables = capabilities_of(store).tables
    if tables is None:
        raise click.UsageError(
            f"the event store of {context.obj.app.main} is not in a SQL database, and {otherwise}:"
            f" {place_of(store)}"
        )
    return tables
