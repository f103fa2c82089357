"""Tables that are read by what is behind a number: rows become visible in the order of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa


def append(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any]) -> None:
    """Add a row; whoever else adds one to the table waits until this transaction has ended.

    A reader would else miss a row whose number is lower than the last that it saw, but which was
    committed later.
    """
    if connection.dialect.name == "postgresql":
        # Readers don't wait. SQLite has one writer at a time anyway.
        connection.execute(sa.text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))
    connection.execute(sa.insert(table), dict(row))
