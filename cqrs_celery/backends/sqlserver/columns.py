"""SQL Server's own column types: texts of its own kind and order, and times to the microsecond.

Texts that identify are compared code by code: SQL Server's own order would take `bolt` for `BOLT`.
In any order, it takes `bolt` for `bolt `. So a stream's key is the hash of its name, which also
suits its short indexes, and no other key ends with a space: see `closed`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Dialect
from sqlalchemy.dialects.mssql import CHAR, DATETIME2, NVARCHAR
from sqlalchemy.types import TypeDecorator

from ..sql.column_types import ColumnTypes

#: The order that compares code by code.
BINARY: Final = "Latin1_General_100_BIN2"


def closed(key: str) -> str:
    """Return a key that SQL Server tells from all others: it does not compare spaces at the end.

    A key that ends with a space gets a backslash behind it. So does one that ends with a backslash,
    so that no two keys become one.
    """
    return f"{key}\\" if key.endswith((" ", "\\")) else key


class ClosedText(TypeDecorator[str]):
    """SQL Server's NVARCHAR for a key, which is stored as `closed` returns it."""

    impl = NVARCHAR
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the key as it is stored."""
        return None if value is None else closed(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> str | None:
        """Return the key that is stored."""
        return value[:-1] if value is not None and value.endswith("\\") else value


def _text() -> NVARCHAR:
    return NVARCHAR("max")  # type: ignore[arg-type]


COLUMN_TYPES: Final = ColumnTypes(
    key=lambda length: ClosedText(length, collation=BINARY),
    id=lambda length: NVARCHAR(length, collation=BINARY),
    hash=lambda: CHAR(64, collation=BINARY),
    name=lambda: NVARCHAR("max", collation=BINARY),  # type: ignore[arg-type]
    text=_text,
    json=_text,
    time=lambda: DATETIME2(6),  # type: ignore[no-untyped-call]
)
