"""`celery -A app cqrs schema`: make a SQL event store's tables, check them, print their SQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..errors import CQRSError
from .application import sql_store_of


@click.group(name="schema", help="Look after the tables of a SQL event store.")
def schema() -> None:
    """Gather the commands."""


@schema.command(cls=CeleryCommand, name="create")
@click.pass_context
def create(context: click.Context) -> None:
    """Make the tables, or bring them to this version; what is there is left alone."""
    with _sql_store(context) as (store, tables):
        click.echo(f"{store.where} has version {tables.create_schema(store)}")


@schema.command(cls=CeleryCommand, name="check")
@click.pass_context
def check(context: click.Context) -> None:
    """Exit with 1 if the tables are not there in this version, or may not be used.

    Whether the role of the application's URL may use them, PostgreSQL alone is asked.
    """
    with _sql_store(context) as (store, tables):
        from ..backends.sql.rights import check_rights

        # First, since the look at the version needs a right, too.
        check_rights(store)
        click.echo(f"{store.where} has version {tables.check_schema(store)}")


@schema.command(cls=CeleryCommand, name="sql")
@click.pass_context
def sql(context: click.Context) -> None:
    """Print the statements that make the tables, without connecting: for a DBA to run."""
    with _sql_store(context) as (store, tables):
        click.echo(tables.schema_sql(store.engine.dialect.name))


@contextmanager
def _sql_store(context: click.Context) -> Iterator[tuple[Any, ModuleType]]:
    """Provide the application's store, which must be a SQL one, and what looks after its tables.

    Raises:
        click.UsageError: the application has no `CQRS`, or its store is none.
        click.ClickException: the server does not answer, or the tables are not as they should be.
    """
    try:
        store = sql_store_of(context, otherwise="has no tables")
        from ..backends.sql import schema as tables

        yield store, tables
    except CQRSError as error:
        raise click.ClickException(str(error)) from error
