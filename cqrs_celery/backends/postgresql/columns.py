"""PostgreSQL's own column type: jsonb."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.types import UserDefinedType

from ..sql.column_types import ColumnTypes


class JsonbText(UserDefinedType[str]):
    """PostgreSQL's jsonb, given as a text: what we store is JSON already."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return its name."""
        return "JSONB"


COLUMN_TYPES: Final = ColumnTypes(json=JsonbText)
