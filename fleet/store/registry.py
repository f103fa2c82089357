"""The registry in a store's database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from fleet.errors import TakenNameError, UnknownDeviceError
from fleet.registry import Device, Filter, NewDevice, Observed
from fleet.store.device_filter import where
from fleet.store.sql import SqlStore
from fleet.store.tables import leases, members, registry, reports, rounds

_Item = TypeVar("_Item")
_OBSERVED = tuple(Observed.model_fields)
_AT_ONCE = 1000
"""Rows of a statement, and of a page that an export reads."""


@dataclass(frozen=True)
class Preview:
    """Which devices a filter means, before anything is done with them."""

    count: int
    sample: tuple[Device, ...]
    reasons: dict[str, int]
    """Part of the condition → of how many it isn't true; a device may count in several."""


@dataclass(frozen=True)
class Tally:
    """How many devices of a site, a board and a version (digest of what is current) there are in a
    state: `online`, `offline`, `unheard` (of none a gateway has told) or `retired`."""

    site: str
    board: str | None
    current: str | None
    state: str
    count: int


class Registry:
    """Devices by name. Every change is one transaction."""

    def __init__(self, store: SqlStore) -> None:
        """The registry of the same database."""
        self._store = store

    def add(self, devices: Iterable[NewDevice]) -> int:
        """Add all or none; returns how many. TakenNameError where one is there already."""
        added, now = 0, self._store.clock.wall()
        with self._store.writing() as connection:
            for some in _batches(devices):
                names = {one.device for one in some}
                known = connection.execute(
                    sa.select(registry.c.device).where(registry.c.device.in_(names))
                ).scalars()
                twice = sorted(known) or _doubled(one.device for one in some)
                if twice:
                    raise TakenNameError(
                        f"device {twice[0]} is in the registry already; "
                        "nothing was added, choose another name or retire that one"
                    )
                rows = [{**one.model_dump(), "added": now, "retired": False} for one in some]
                connection.execute(sa.insert(registry), rows)
                added += len(rows)
        return added

    def get(self, device: str) -> Device:
        """One device. Raises `RegistryError` where it isn't known."""
        with self._store.reading() as connection:
            row = (
                connection.execute(sa.select(registry).where(registry.c.device == device))
                .mappings()
                .first()
            )
        if row is None:
            raise UnknownDeviceError(f"the registry has no device {device}; add it first")
        return _device(row)

    def page(self, of: Filter, after: str = "", limit: int = 100) -> tuple[Device, ...]:
        """Matching devices in order of their names, those behind `after`."""
        query = (
            sa.select(registry)
            .where(self._where(of), registry.c.device > after)
            .order_by(registry.c.device)
            .limit(limit)
        )
        with self._store.reading() as connection:
            return tuple(_device(row) for row in connection.execute(query).mappings())

    def export(self, of: Filter) -> Iterator[Device]:
        """All matching devices in order of their names, a page in memory at a time."""
        after = ""
        while True:
            page = self.page(of, after, _AT_ONCE)
            yield from page
            if len(page) < _AT_ONCE:
                return
            after = page[-1].device

    def names(self, of: Filter) -> frozenset[str]:
        """The names of all devices that match and aren't retired."""
        query = sa.select(registry.c.device).where(self._where(of), ~registry.c.retired)
        with self._store.reading() as connection:
            return frozenset(connection.execute(query).scalars())

    def labels(self, devices: Iterable[str]) -> dict[str, dict[str, str]]:
        """Labels of those of the devices that are known."""
        found: dict[str, dict[str, str]] = {}
        with self._store.reading() as connection:
            for some in _batches(devices):
                query = sa.select(registry.c.device, registry.c.labels)
                rows = connection.execute(query.where(registry.c.device.in_(some)))
                found.update((name, dict(labels)) for name, labels in rows)
        return found

    def preview(self, of: Filter, sample: int = 10) -> Preview:
        """Which devices a filter means, and why it doesn't mean the others."""
        now = self._store.clock.wall()
        parts = of.parts()
        sums = [
            sa.func.sum(sa.case((where(part, now), 0), else_=1)).label(f"part_{number}")
            for number, part in enumerate(parts)
        ]
        matching = sa.func.sum(sa.case((where(of.condition, now), 1), else_=0))
        with self._store.reading() as connection:
            counts = sa.select(matching, *sums).select_from(registry)
            count, *others = connection.execute(counts).one()
        return Preview(
            int(count or 0),
            self.page(of, limit=sample),
            {str(part): int(other) for part, other in zip(parts, others, strict=True) if other},
        )

    def observe(self, devices: Mapping[str, Observed]) -> frozenset[str]:
        """Note what gateways have heard; returns the names that aren't in the registry."""
        unknown: set[str] = set()
        with self._store.writing() as connection:
            for some in _batches(sorted(devices)):
                known = set(
                    connection.execute(
                        sa.select(registry.c.device).where(registry.c.device.in_(some))
                    ).scalars()
                )
                unknown |= set(some) - known
                if known:
                    connection.execute(
                        sa.update(registry).where(registry.c.device == sa.bindparam("name")),
                        [{"name": name, **devices[name].model_dump()} for name in sorted(known)],
                    )
        return frozenset(unknown)

    def label(self, device: str, labels: Mapping[str, str | None]) -> Device:
        """Set labels, and take away those whose value is None."""
        before = self.get(device)
        changed = {**before.labels, **labels}
        kept = {name: value for name, value in changed.items() if value is not None}
        checked = NewDevice.parse({"device": device, "site": before.site, "labels": kept})
        self._update(device, labels=dict(checked.labels))
        return self.get(device)

    def retire(self, device: str) -> None:
        """It takes part in nothing any more; its record is kept."""
        self._update(device, retired=True)

    def erase(self, device: str) -> None:
        """Forget a device and what it has reported, for good.

        That it may log in no more (`Logins.revoke`) stays on record: its site may not have heard of
        it yet, and without the row its revision would be used again.
        """
        with self._store.writing() as connection:
            for table in (reports, members, leases):
                connection.execute(sa.delete(table).where(table.c.device == device))
            gone = connection.execute(sa.delete(registry).where(registry.c.device == device))
        if not gone.rowcount:
            raise UnknownDeviceError(f"the registry has no device {device}")

    def history(self, device: str, limit: int = 200) -> tuple[dict[str, Any], ...]:
        """What it has reported in rounds, newest first."""
        columns = [column for column in reports.c if column.name != "device"]
        query = (
            sa.select(*columns, rounds.c.ended, rounds.c.kind, rounds.c.weights)
            .join(
                rounds,
                (rounds.c.campaign == reports.c.campaign) & (rounds.c.number == reports.c.round),
            )
            .where(reports.c.device == device)
            .order_by(rounds.c.ended.desc())
            .limit(limit)
        )
        with self._store.reading() as connection:
            return tuple(dict(row) for row in connection.execute(query).mappings())

    def scores_with(self, weights: str) -> dict[str, tuple[int, int]]:
        """The newest right answers and held-out samples of each device that scored a version's
        weights (digest), be it in a round that only scored or before it trained."""
        found: dict[str, tuple[int, int]] = {}
        of_rounds = sa.select(rounds.c.campaign, rounds.c.number).where(rounds.c.weights == weights)
        columns = (reports.c.device, reports.c.correct_before, reports.c.held_out)
        with self._store.reading() as connection:
            # Round by round: all reports sorted by time would be much slower.
            for campaign, number in connection.execute(of_rounds.order_by(rounds.c.ended)).all():
                query = sa.select(*columns).where(
                    reports.c.campaign == campaign,
                    reports.c.round == number,
                    reports.c.held_out > 0,
                )
                found |= {name: (right, of) for name, right, of in connection.execute(query)}
        return found

    def now(self) -> float:
        """The time that ages count to (Unix time)."""
        return self._store.clock.wall()

    def tally(self, of: Filter) -> tuple[Tally, ...]:
        """The matching devices, counted by what they have in common: one look at each row."""
        state = sa.case(
            (registry.c.retired, "retired"),
            (registry.c.online.is_(None), "unheard"),
            (registry.c.online, "online"),
            else_="offline",
        )
        kinds = (registry.c.site, registry.c.board, registry.c.current, state)
        query = sa.select(*kinds, sa.func.count()).where(self._where(of)).group_by(*kinds)
        with self._store.reading() as connection:
            return tuple(Tally(*row) for row in connection.execute(query))

    def presence(self) -> dict[tuple[str, str], int]:
        """How many devices that aren't retired there are, by site and `yes`, `no` or `unknown`."""
        said = sa.case(
            (registry.c.online.is_(None), "unknown"), (registry.c.online, "yes"), else_="no"
        )
        query = sa.select(registry.c.site, said, sa.func.count()).where(~registry.c.retired)
        with self._store.reading() as connection:
            rows = connection.execute(query.group_by(registry.c.site, said))
            return {(site, online): int(count) for site, online, count in rows}

    def _update(self, device: str, **values: Any) -> None:
        statement = sa.update(registry).where(registry.c.device == device).values(values)
        with self._store.writing() as connection:
            if not connection.execute(statement).rowcount:
                raise UnknownDeviceError(f"the registry has no device {device}; add it first")

    def _where(self, of: Filter) -> sa.ColumnElement[bool]:
        return where(of.condition, self._store.clock.wall())


def _device(row: sa.RowMapping) -> Device:
    observed = None
    if row["gateway"] is not None:
        observed = Observed.model_construct(**{name: row[name] for name in _OBSERVED})
    return Device.model_construct(
        device=row["device"],
        site=row["site"],
        labels=row["labels"],
        added=row["added"],
        retired=row["retired"],
        observed=observed,
    )


def _batches(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    batch: list[_Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == _AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch


def _doubled(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return [name]
        seen.add(name)
    return []
