"""What PostgreSQL says of the rights that a role lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

#: What numbers are taken from: a table, its column, and the sequence behind that.
SEQUENCES: Final = {
    ("cqrs_streams", "stream_id"): "cqrs_streams_stream_id_seq",
    ("cqrs_events", "global_position"): "cqrs_events_global_position_seq",
}


def missing_rights(rights_on: Mapping[str, Sequence[str]]) -> CompoundSelect[Any]:
    """Return the statement that reads the rights that the connection's role lacks.

    Args:
        rights_on: the rights that are needed, by table.

    Returns:
        What selects a role, a thing and a right in each row.
    """
    tables = [
        _unless(func.has_table_privilege(_text(table), _text(right)), literal(table), right)
        for table, rights in rights_on.items()
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
