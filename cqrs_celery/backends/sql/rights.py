"""What the application's role must be allowed, where another one has made the tables.

    check_rights(store)        # raises StoreError, which has the GRANTs that are missing

An engine is asked whose rules say how: PostgreSQL. SQLite has no roles, and SQL Server was not at
hand.
"""

from __future__ import annotations

from typing import Final

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


def check_rights(store: SqlAccess) -> None:
    """Check that the role of a store's connections may do all that the store does.

    Args:
        store: has the tables.

    Raises:
        SchemaError: a table is missing.
        StoreError: it may not; the text has the statements that allow it.
        StoreUnavailable: the server does not answer.
    """
    statement = store.rules.missing_rights(TABLES)
    if statement is None:
        return
    found = store.rows(statement, "look up the role's rights", store.primary_reader)
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
