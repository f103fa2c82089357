"""All that a store holds, from one database to another: what backups are made of.

The copy of a backup goes on where the store stood then, while devices, gateways and followers
remember numbers of what came after. So numbers that they remember go on above all that may have
been given, by the clock: no number grows by more than one a second for as long as a fleet lives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from fleet.errors import ConflictError, StoreError
from fleet.store.sql import SqlStore
from fleet.store.tables import audit, campaigns, events, metadata, restores, terms

_ROWS_AT_ONCE = 500
_MOST_FLOOR = (1 << 32) - (1 << 24)
"""Rounds and leases have 32 bits on the wire, and go on from there."""
_RESTORED = "restored"

Tell = Callable[[str, int, int], None]


def copy_store(source: SqlStore, target: SqlStore, tell: Tell = lambda what, done, of: None) -> int:
    """Copy all rows as they are at one instant, all or nothing; gives their number.

    Whoever writes to `source` meanwhile isn't kept waiting. Raises `ConflictError` where `target`
    isn't empty.
    """
    with source.snapshot() as reading, target.writing() as writing:
        _require_empty(writing)
        return _copy(reading, writing, tell)


def restore_store(
    source: SqlStore,
    target: SqlStore,
    backed_up: float,
    tell: Tell = lambda what, done, of: None,
) -> int:
    """The same, into a store that goes on from there; `backed_up` is when `source` was made.

    Nobody acts for the fleet then, and what drove campaigns can't go on by what it remembers.
    """
    with source.snapshot() as reading, target.writing() as writing:
        _require_empty(writing)
        rows = _copy(reading, writing, tell)
        floor = max(int(target.clock.wall()), int(backed_up) + 1, target.floor(writing) + 1)
        if floor > _MOST_FLOOR:
            raise StoreError(f"by its clock this machine is in the far future ({floor}); set it")
        writing.execute(
            sa.insert(restores),
            {"floor": floor, "at": target.clock.wall(), "backed_up": backed_up},
        )
        writing.execute(sa.update(terms).values(holder="", number=terms.c.number + floor))
        writing.execute(
            sa.update(campaigns).values(
                driver=_RESTORED, driver_seen=0.0, revision=campaigns.c.revision + floor
            )
        )
        told = {"at": target.clock.wall()}
        text = f'{{"backed_up": {backed_up!r}}}'
        writing.execute(
            sa.insert(events),
            {**told, "number": floor, "kind": _RESTORED, "campaign": "", "data": text},
        )
        writing.execute(
            sa.insert(audit),
            {
                **told,
                "number": floor,
                "who": "",
                "role": "",
                "action": "store.restore",
                "object": "store",
                "before": "null",
                "after": text,
                "why": "",
            },
        )
        _go_on_counting(writing)
        return rows


def _require_empty(connection: sa.Connection) -> None:
    for table in metadata.sorted_tables:
        if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise ConflictError(
                f"the store isn't empty, it has {table.name}: nothing is written over; give an "
                "empty database"
            )


def _copy(reading: sa.Connection, writing: sa.Connection, tell: Tell) -> int:
    total = sum(
        int(reading.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())
        for table in metadata.sorted_tables
    )
    done = 0
    for table in metadata.sorted_tables:
        ordered = sa.select(table).order_by(*table.primary_key)
        for page in reading.execute(ordered).mappings().partitions(_ROWS_AT_ONCE):
            rows: list[dict[str, Any]] = [dict(row) for row in page]
            writing.execute(sa.insert(table), rows)
            done += len(rows)
            tell(f"copying {table.name}", done, total)
    return done


def _go_on_counting(connection: sa.Connection) -> None:
    """PostgreSQL counts apart from the rows that were given their numbers."""
    if connection.dialect.name != "postgresql":
        return
    for table in metadata.sorted_tables:
        column = table.autoincrement_column
        if column is not None:
            last = sa.select(sa.func.coalesce(sa.func.max(column), 0) + 1).scalar_subquery()
            sequence = sa.func.pg_get_serial_sequence(table.name, column.name)
            connection.execute(sa.select(sa.func.setval(sequence, last, False)))
