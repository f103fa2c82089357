"""What has happened, in order, for whoever follows: streams and webhooks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fleet.store.sql import SqlStore
from fleet.store.tables import events


@dataclass(frozen=True)
class Event:
    """`kind`: `state`, `gate`, `round`, …; `number` only grows."""

    number: int
    at: float
    kind: str
    campaign: str
    data: Mapping[str, Any]


class Events:
    """The events of a store."""

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def add(self, kind: str, campaign: str, data: Mapping[str, Any]) -> None:
        """Something has happened."""
        row = {
            "at": self._store.clock.wall(),
            "kind": kind,
            "campaign": campaign,
            "data": json.dumps(dict(data)),
        }
        with self._store.writing() as connection:
            if connection.dialect.name == "postgresql":
                # Numbers are given before they are seen: whoever follows would miss the lower one
                # of two, where that is committed last.
                connection.execute(sa.text("LOCK TABLE events IN EXCLUSIVE MODE"))
            connection.execute(sa.insert(events), row)

    def after(self, number: int, campaign: str = "", limit: int = 100) -> tuple[Event, ...]:
        """Those behind `number`, oldest first."""
        query = sa.select(events).where(events.c.number > number)
        if campaign:
            query = query.where(events.c.campaign == campaign)
        with self._store.reading() as connection:
            rows = connection.execute(query.order_by(events.c.number).limit(limit))
            return tuple(Event(row[0], row[1], row[2], row[3], json.loads(row[4])) for row in rows)

    def last(self) -> int:
        """The number of the newest; 0 where there is none."""
        with self._store.reading() as connection:
            return int(connection.execute(sa.select(sa.func.max(events.c.number))).scalar() or 0)
