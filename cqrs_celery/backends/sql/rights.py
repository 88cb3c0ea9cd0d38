"""What the application's role must be allowed, where another one has made the tables.

    check_rights(store)        # raises StoreError, which has the GRANTs that are missing

PostgreSQL is asked. Elsewhere nothing is checked: SQLite has no roles, and SQL Server was not at
hand.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    String,
    func,
    literal,
    select,
    text,
    union_all,
)
from sqlalchemy.sql import column

from ...errors import StoreError
from .access import SqlAccess

#: What is done with each table. Events are only ever added.
TABLES: Final = {
    "cqrs_streams": ("SELECT", "INSERT", "UPDATE"),
    "cqrs_events": ("SELECT", "INSERT"),
    "cqrs_commands": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cqrs_checkpoints": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cqrs_snapshots": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cqrs_relays": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cqrs_relay_subscribers": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "cqrs_store": ("SELECT",),
    "cqrs_schema": ("SELECT",),
}

#: What PostgreSQL takes numbers from: a table, its column, and the sequence behind that.
SEQUENCES: Final = {
    ("cqrs_streams", "stream_id"): "cqrs_streams_stream_id_seq",
    ("cqrs_events", "global_position"): "cqrs_events_global_position_seq",
}


def check_rights(store: SqlAccess) -> None:
    """Check that the role of a store's connections may do all that the store does.

    Args:
        store: has the tables.

    Raises:
        SchemaError: a table is missing.
        StoreError: it may not; the text has the statements that allow it.
        StoreUnavailable: the server does not answer.
    """
    if store.engine.dialect.name != "postgresql":
        return
    found = store.rows(_missing(), "look up the role's rights", store.primary_reader)
    if not found:
        return
    role = str(found[0][0])
    wanted: dict[str, list[str]] = {}
    for _, thing, right in found:
        wanted.setdefault(str(thing), []).append(str(right))
    grants = "; ".join(
        f"GRANT {', '.join(rights)} ON {thing} TO {role}" for thing, rights in wanted.items()
    )
    raise StoreError(
        f"the role {role} may not do all that the event store in {store.where} needs. Let the"
        f" owner of its tables run: {grants}"
    )


def _missing() -> CompoundSelect[Any]:
    """Return what reads the rights that the role lacks: role, thing, right."""
    tables = [
        _unless(func.has_table_privilege(_text(table), _text(right)), literal(table), right)
        for table, rights in TABLES.items()
        for right in rights
    ]
    sequences = [
        _unless(
            func.has_sequence_privilege(
                func.pg_get_serial_sequence(_text(table), _text(name)), _text("USAGE")
            ),
            literal(f"SEQUENCE {sequence}"),
            "USAGE",
        )
        for (table, name), sequence in SEQUENCES.items()
    ]
    functions = (
        _unless(
            func.has_function_privilege(column("oid"), _text("EXECUTE")),
            literal("FUNCTION ").concat(column("proname")),
            "EXECUTE",
        )
        .select_from(text("pg_proc"))
        .where(column("proname").in_(("cqrs_append_v1", "cqrs_append_one_v1")))
    )
    return union_all(*tables, *sequences, functions)


def _unless(
    has_it: ColumnElement[bool], thing: ColumnElement[str], right: str
) -> Select[str, str, str]:
    role: ColumnElement[str] = func.quote_ident(text("current_user"))
    return select(role, thing, literal(right)).where(~has_it)


def _text(value: str) -> ColumnElement[str]:
    return literal(value, String())
