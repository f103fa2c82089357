"""The ledger of privacy in a store's database: what rounds have spent of each device's.

`SqlStore.begin_round` writes it, with a round's plan and so before any task goes out. Nothing is
taken out of it: a round that brought nothing, or that was cancelled, may still have been seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from fleet.store.sql import SqlStore
from fleet.store.tables import campaigns, ledger, restores

_NAMES_AT_ONCE = 500
"""Databases limit the parameters of a statement."""


@dataclass(frozen=True)
class Spent:
    """What a campaign has spent of a device's privacy: so many rounds, `rho` (zCDP) in all.

    `config` is the campaign's configuration (JSON text), `last` the time of the last round (Unix).
    """

    device: str
    campaign: str
    config: str
    rounds: int
    rho: float
    last: float


@dataclass(frozen=True)
class Gap:
    """A time (Unix) whose rounds the ledger may lack: the store was restored from a backup."""

    since: float
    until: float


class Ledger:
    """What has been spent, by device and campaign."""

    def __init__(self, store: SqlStore) -> None:
        """That of the same database."""
        self._store = store

    def spent(self, devices: Iterable[str]) -> dict[str, float]:
        """What all campaigns together have spent (rho) of those of the devices that there is
        something of."""
        names, found = sorted(devices), {}
        with self._store.reading() as connection:
            for first in range(0, len(names), _NAMES_AT_ONCE):
                query = sa.select(ledger.c.device, sa.func.sum(ledger.c.rho)).where(
                    ledger.c.device.in_(names[first : first + _NAMES_AT_ONCE])
                )
                for device, rho in connection.execute(query.group_by(ledger.c.device)):
                    found[device] = float(rho)
        return found

    def devices(
        self, after: str = "", limit: int = 100, campaign: str = "", device: str = ""
    ) -> tuple[str, ...]:
        """Devices in order of their names, those behind `after`: all of the ledger, those that a
        campaign has spent something of, or the one."""
        query = sa.select(ledger.c.device).where(ledger.c.device > after)
        if campaign:
            query = query.where(ledger.c.campaign == campaign)
        if device:
            query = query.where(ledger.c.device == device)
        query = query.distinct().order_by(ledger.c.device).limit(limit)
        with self._store.reading() as connection:
            return tuple(row[0] for row in connection.execute(query))

    def of_devices(self, devices: Iterable[str]) -> tuple[Spent, ...]:
        """What each campaign has spent of these devices (a page of them), the oldest campaign of
        each device first."""
        query = (
            sa.select(
                ledger.c.device,
                ledger.c.campaign,
                campaigns.c.config,
                sa.func.count(),
                sa.func.sum(ledger.c.rho),
                sa.func.max(ledger.c.at),
            )
            .join(campaigns, campaigns.c.id == ledger.c.campaign)
            .where(ledger.c.device.in_(tuple(devices)))
            .group_by(ledger.c.device, ledger.c.campaign, campaigns.c.config, campaigns.c.position)
            .order_by(ledger.c.device, campaigns.c.position)
        )
        with self._store.reading() as connection:
            return tuple(Spent(*row) for row in connection.execute(query))

    def gaps(self) -> tuple[Gap, ...]:
        """Times of which it may lack rounds, oldest first."""
        query = sa.select(restores.c.backed_up, restores.c.at).order_by(restores.c.floor)
        with self._store.reading() as connection:
            return tuple(Gap(*row) for row in connection.execute(query))
