"""SQLite's own column type: only an INTEGER key is a number that it gives itself."""

from __future__ import annotations

from typing import Final

from sqlalchemy import Integer

from ..sql.column_types import ColumnTypes

COLUMN_TYPES: Final = ColumnTypes(number=Integer)
