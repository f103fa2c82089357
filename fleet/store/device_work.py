"""What a device has done in all campaigns, by its reports in a store's database."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from fleet.store.sql import SqlStore
from fleet.store.tables import campaigns, members, reports, rounds


@dataclass(frozen=True)
class Work:
    """Sums over the reports of a device; those that were deleted because they are old are missing.

    `seconds` are those from tasks to deltas. `versions` counts the weights that it has reported
    with and that weren't on it when it joined the campaign: each was written to its flash.
    """

    reports: int
    trained: int
    seconds: float
    payload_bytes: int
    versions: int


@dataclass(frozen=True)
class Trouble:
    """A campaign in which the device didn't do its part the last time, `failures` times in a row;
    it isn't asked before `not_before` (Unix time)."""

    campaign: str
    config: str
    stage: int
    failures: int
    reason: str
    not_before: float


class DeviceWork:
    """What devices have done."""

    def __init__(self, store: SqlStore) -> None:
        """By the reports of the same database."""
        self._store = store

    def of(self, device: str) -> Work:
        """All that it has reported."""
        of_round = sa.and_(
            rounds.c.campaign == reports.c.campaign, rounds.c.number == reports.c.round
        )
        sums = sa.select(
            sa.func.count(),
            sa.func.count().filter(reports.c.train_steps > 0),
            sa.func.coalesce(sa.func.sum(reports.c.seconds), 0.0),
            sa.func.coalesce(sa.func.sum(reports.c.payload_bytes), 0),
        ).where(reports.c.device == device)
        written = (
            sa.select(rounds.c.campaign, rounds.c.weights)
            .join(reports, of_round)
            .outerjoin(
                members,
                (members.c.campaign == reports.c.campaign) & (members.c.device == reports.c.device),
            )
            .where(
                reports.c.device == device,
                rounds.c.weights != "",
                rounds.c.weights != sa.func.coalesce(members.c.before, ""),
            )
            .distinct()
            .subquery()
        )
        with self._store.reading() as connection:
            count, trained, seconds, payload = connection.execute(sums).one()
            versions = connection.execute(sa.select(sa.func.count()).select_from(written)).scalar()
        return Work(count, trained, float(seconds), int(payload), int(versions or 0))

    def troubles(self, device: str, limit: int = 50) -> tuple[Trouble, ...]:
        """Where it failed the last time that it was asked, the newest campaign first."""
        query = (
            sa.select(
                members.c.campaign,
                campaigns.c.config,
                members.c.stage,
                members.c.failures,
                members.c.reason,
                members.c.not_before,
            )
            .join(campaigns, campaigns.c.id == members.c.campaign)
            .where(members.c.device == device, members.c.failures > 0)
            .order_by(campaigns.c.position.desc())
            .limit(limit)
        )
        with self._store.reading() as connection:
            return tuple(Trouble(*row) for row in connection.execute(query))

    def campaigns(self, names: frozenset[str]) -> dict[str, str]:
        """The configurations (JSON text) of campaigns by their ids."""
        query = sa.select(campaigns.c.id, campaigns.c.config).where(campaigns.c.id.in_(names))
        with self._store.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}
