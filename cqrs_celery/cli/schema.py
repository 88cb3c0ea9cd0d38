"""`celery -A app cqrs schema`: create a SQL event store's tables, check them, print their SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..errors import CQRSError
from .application import sql_store_of


@click.group(name="schema", help="Maintain the tables of a SQL event store.")
def schema() -> None:
    """Group the commands about tables."""


@schema.command(cls=CeleryCommand, name="create")
@click.pass_context
def create(context: click.Context) -> None:
    """Create the tables, or upgrade them to this version; existing data stay as they are."""
    with _sql_store(context) as (store, tables):
        click.echo(f"{store.where} has version {tables.create_schema(store)}")


@schema.command(cls=CeleryCommand, name="check")
@click.pass_context
def check(context: click.Context) -> None:
    """Exit with 1 if the tables are missing, have another version, or may not be used.

    Only in PostgreSQL, the rights of the application's role to use them are checked.
    """
    with _sql_store(context) as (store, tables):
        from ..backends.sql.rights import check_rights

        # First, since reading the version needs a right, too.
        check_rights(store)
        click.echo(f"{store.where} has version {tables.check_schema(store)}")


@schema.command(cls=CeleryCommand, name="sql")
@click.pass_context
def sql(context: click.Context) -> None:
    """Print the statements that create the tables, for a DBA to run. Nothing is connected."""
    with _sql_store(context) as (store, tables):
        click.echo(tables.schema_sql(store.engine.dialect.name))


@contextmanager
def _sql_store(context: click.Context) -> Iterator[tuple[Any, ModuleType]]:
    """Provide the application's SQL store, and the module that maintains its tables.

    Raises:
        click.UsageError: the application has no `CQRS`, or its store is not in a SQL database.
        click.ClickException: the server does not answer, or the tables are not as they should be.
    """
    try:
        store = sql_store_of(context, otherwise="has no tables")
        from ..backends.sql import schema as tables

        yield store, tables
    except CQRSError as error:
        raise click.ClickException(str(error)) from error
