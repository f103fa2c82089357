"""Sums of running rounds: in memory, and on disk what it takes to have them again after a crash.

A sum of a large plan has hundreds of kilobytes, a delta a few. So the store writes the coded
delta, and the sum once the deltas since its last writing outweigh it (or at once, where those of
one transaction do): never much more than what came in, however large the plan.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fleet.gateway.value_forms import ValueForm, Values

SCHEMA = """
CREATE TABLE sums (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    plan BLOB NOT NULL, part INTEGER NOT NULL, size INTEGER NOT NULL,
    total BLOB, weight INTEGER NOT NULL DEFAULT 0, devices INTEGER NOT NULL DEFAULT 0,
    mask_bits INTEGER NOT NULL, unmaskers INTEGER NOT NULL,
    PRIMARY KEY (round_id, plan, part)
);
CREATE TABLE unfolded (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    plan BLOB NOT NULL, part INTEGER NOT NULL, device TEXT NOT NULL,
    weight INTEGER NOT NULL, coded BLOB NOT NULL,
    PRIMARY KEY (round_id, plan, part, device)
) WITHOUT ROWID;
"""


class _Place(NamedTuple):
    round_id: int
    plan: bytes
    part: int


@dataclass
class _Sum:
    """A sum as it stands; ``fresh`` are deltas that the database knows nothing of yet."""

    form: ValueForm
    total: NDArray[np.int64]
    weight: int
    devices: int
    unfolded_bytes: int
    fresh: list[tuple[str, int, bytes]] = field(default_factory=list)

    def add(self, values: Values, weight: int) -> None:
        self.form.add(self.total, values, weight)
        self.weight += weight
        self.devices += 1


class Sums:
    """The sums in one database. Of running rounds those that were added to are kept in memory."""

    def __init__(self, database: sqlite3.Connection) -> None:
        """The tables of ``SCHEMA`` are there."""
        self._db = database
        self._live: dict[_Place, _Sum] = {}
        self._changed: dict[_Place, None] = {}

    def begin(
        self, round_id: int, plan: bytes, values: int, form: ValueForm, parts: Iterable[int]
    ) -> None:
        """Parts begin: all is zero."""
        self._db.executemany(
            "INSERT INTO sums (round_id, plan, part, size, mask_bits, unmaskers) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [(round_id, plan, part, values, *form) for part in parts],
        )

    def add(
        self,
        round_id: int,
        plan: bytes,
        part: int,
        device: str,
        weight: int,
        values: Values,
        coded: bytes,
    ) -> None:
        """Add weight · values; on disk after ``write``."""
        place = _Place(round_id, plan, part)
        found = self._live.get(place)
        if found is None:
            found = self._live[place] = self._load(place)
        found.add(values, weight)
        found.fresh.append((device, weight, coded))
        self._changed.setdefault(place)

    def _load(self, place: _Place) -> _Sum:
        size, total, weight, devices, *form = self._db.execute(
            "SELECT size, total, weight, devices, mask_bits, unmaskers FROM sums "
            "WHERE round_id = ? AND plan = ? AND part = ?",
            place,
        ).fetchone()
        values = np.zeros(size, np.int64) if total is None else np.frombuffer(total, "<i8")
        found = _Sum(ValueForm(*form), values.astype(np.int64), weight, devices, 0)
        for weight, coded in self._db.execute(
            "SELECT weight, coded FROM unfolded WHERE round_id = ? AND plan = ? AND part = ?", place
        ):
            found.add(found.form.decode(coded, size).values, weight)
            found.unfolded_bytes += len(coded)
        return found

    def write(self) -> None:
        """Before a transaction ends: put on disk what was added in it."""
        for place in self._changed:
            found = self._live[place]
            fresh = sum(len(coded) for _, _, coded in found.fresh)
            if found.unfolded_bytes + fresh >= found.total.nbytes:
                self._write_total(place, found)
            else:
                self._db.executemany(
                    "INSERT INTO unfolded VALUES (?, ?, ?, ?, ?, ?)",
                    [(*place, *delta) for delta in found.fresh],
                )
                found.unfolded_bytes += fresh
            found.fresh.clear()
        self._changed.clear()

    def _write_total(self, place: _Place, found: _Sum) -> None:
        self._db.execute(
            "UPDATE sums SET total = ?, weight = ?, devices = ? "
            "WHERE round_id = ? AND plan = ? AND part = ?",
            (found.total.astype("<i8").tobytes(), found.weight, found.devices, *place),
        )
        if found.unfolded_bytes:
            self._db.execute(
                "DELETE FROM unfolded WHERE round_id = ? AND plan = ? AND part = ?", place
            )
            found.unfolded_bytes = 0

    def end(self, round_id: int, part: int | None = None) -> None:
        """A round (or one part of it) has ended: its sums are on disk as they are, and no longer
        in memory."""
        waiting = self._db.execute(
            "SELECT DISTINCT round_id, plan, part FROM unfolded WHERE round_id = ?", (round_id,)
        )
        places = {_Place(*row) for row in waiting}
        places |= {place for place in self._live if place.round_id == round_id}
        for place in places:
            if part in (None, place.part):
                found = self._live.pop(place, None) or self._load(place)
                self._write_total(place, found)
                self._changed.pop(place, None)

    def follow(self, round_id: int, part: int) -> None:
        """The part after ``part``, which has ended, begins; those before are forgotten."""
        self.end(round_id, part)
        self._db.execute("DELETE FROM sums WHERE round_id = ? AND part < ?", (round_id, part))
        sizes = self._db.execute(
            "SELECT plan, size, mask_bits, unmaskers FROM sums WHERE round_id = ? AND part = ?",
            (round_id, part),
        )
        for plan, size, *form in sizes.fetchall():
            self.begin(round_id, plan, size, ValueForm(*form), [part + 1])

    def forget_memory(self) -> None:
        """A transaction was rolled back: what memory has is not what the database has."""
        self._live.clear()
        self._changed.clear()

    def of_part(self, round_id: int, part: int) -> dict[str, list[dict[str, Any]]]:
        """Of one part, as it stands, what `of` tells."""
        plans = self._db.execute(
            "SELECT plan FROM sums WHERE round_id = ? AND part = ? ORDER BY plan", (round_id, part)
        )
        found = {}
        for (plan,) in plans.fetchall():
            place = _Place(round_id, plan, part)
            one = self._live.get(place) or self._load(place)
            values = one.total.astype("<i8").tobytes()
            found[plan.hex()] = [{"values": values, "weight": one.weight, "devices": one.devices}]
        return found

    def of(self, round_id: int) -> dict[str, list[dict[str, Any]]]:
        """Of a round that has ended: per plan id (hex) the parts, as ``collect`` tells them.

        Those that nobody delivered anything for have no values.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for plan, total, weight, devices in self._rows(round_id):
            found.setdefault(plan.hex(), []).append(
                {"values": total or b"", "weight": weight, "devices": devices}
            )
        return found

    def _rows(self, round_id: int) -> Iterator[Any]:
        return self._db.execute(
            "SELECT plan, total, weight, devices FROM sums WHERE round_id = ? ORDER BY plan, part",
            (round_id,),
        )
