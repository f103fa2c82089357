"""What has happened, in order, for whoever follows: streams and webhooks."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from fleet.store.appending import append
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
            append(connection, events, row)

    def after(
        self, number: int, campaign: str = "", limit: int = 100, kinds: Collection[str] = ()
    ) -> tuple[Event, ...]:
        """Those behind `number`, oldest first; of all kinds without `kinds`."""
        query = sa.select(events).where(events.c.number > number)
        if campaign:
            query = query.where(events.c.campaign == campaign)
        if kinds:
            query = query.where(events.c.kind.in_(kinds))
        with self._store.reading() as connection:
            return _read(connection.execute(query.order_by(events.c.number).limit(limit)))

    def newest(self, campaign: str, limit: int = 20) -> tuple[Event, ...]:
        """The newest of a campaign, newest first."""
        query = sa.select(events).where(events.c.campaign == campaign)
        with self._store.reading() as connection:
            return _read(connection.execute(query.order_by(events.c.number.desc()).limit(limit)))

    def last(self) -> int:
        """The number of the newest; 0 where there is none."""
        with self._store.reading() as connection:
            return int(connection.execute(sa.select(sa.func.max(events.c.number))).scalar() or 0)


def _read(rows: Iterable[Any]) -> tuple[Event, ...]:
    return tuple(Event(row[0], row[1], row[2], row[3], _data(row[4])) for row in rows)


def _data(text: str) -> dict[str, Any]:
    # A loss that isn't a number is `NaN` in Python's JSON, and in nobody else's.
    data: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return data
