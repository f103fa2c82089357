"""Gateways, and who may log in at which site's broker, in a store's database."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from fleet.errors import TakenNameError
from fleet.store.sql import SqlStore
from fleet.store.tables import access, gateways

DEVICE, GATEWAY = "device", "gateway"


@dataclass(frozen=True)
class GatewayRecord:
    """A gateway; `last_seen` (Unix time) is None until it has been heard of."""

    gateway: str
    site: str
    added: float
    retired: bool = False
    last_seen: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Login:
    """Somebody's right to log in at a site's broker; `hash` is None where it was taken away."""

    name: str
    role: str
    hash: str | None
    revision: int


class Gateways:
    """The gateways of a fleet."""

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def add(self, gateway: str, site: str) -> None:
        """A new one. Raises `TakenNameError` where it is there already."""
        row = {
            "gateway": gateway,
            "site": site,
            "added": self._store.clock.wall(),
            "retired": False,
            "problem": "",
        }
        with self._store.writing() as connection:
            added = connection.execute(
                self._store.inserting_new(gateways).returning(gateways.c.gateway), row
            ).first()
        if added is None:
            raise TakenNameError(f"gateway {gateway} is in the registry already")

    def list(self) -> tuple[GatewayRecord, ...]:
        """All, by name."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(gateways).order_by(gateways.c.gateway))
            return tuple(GatewayRecord(**row._mapping) for row in rows)

    def site_of(self, gateway: str) -> str | None:
        """Its site; None where nobody has added it."""
        query = sa.select(gateways.c.site).where(gateways.c.gateway == gateway)
        with self._store.reading() as connection:
            found: str | None = connection.execute(query).scalar()
            return found

    def sites(self) -> dict[str, str]:
        """The site of each that was added."""
        with self._store.reading() as connection:
            rows = connection.execute(sa.select(gateways.c.gateway, gateways.c.site))
            return {row.gateway: row.site for row in rows}

    def seen(self, gateway: str) -> None:
        """It has just been heard of, and what it says makes sense."""
        self._change(gateway, last_seen=self._store.clock.wall(), problem="")

    def note_problem(self, gateway: str, problem: str) -> None:
        """What it says makes no sense."""
        self._change(gateway, problem=problem)

    def _change(self, gateway: str, **values: object) -> None:
        with self._store.writing() as connection:
            connection.execute(
                sa.update(gateways).where(gateways.c.gateway == gateway).values(values)
            )


class Logins:
    """Who may log in at which site's broker. Only hashes of passwords are kept.

    Every change has a revision, so that a site can be told what has changed since.
    """

    def __init__(self, store: SqlStore) -> None:
        """Those of the same database."""
        self._store = store

    def grant(self, name: str, site: str, role: str, hash: str) -> None:
        """Let somebody in, from now on with this password only."""
        self._set([(name, hash)], site, role)

    def grant_all(self, hashes: dict[str, str], site: str, role: str) -> None:
        """The same for many, in one transaction."""
        self._set(list(hashes.items()), site, role)

    def revoke(self, name: str) -> None:
        """Let somebody in no more."""
        with self._store.writing() as connection:
            connection.execute(
                sa.update(access)
                .where(access.c.name == name)
                .values(hash=None, revision=self._next(connection))
            )

    def _set(self, hashes: list[tuple[str, str | None]], site: str, role: str) -> None:
        with self._store.writing() as connection:
            revision = self._next(connection)
            rows = [
                {"name": name, "site": site, "role": role, "hash": hash, "revision": revision + at}
                for at, (name, hash) in enumerate(hashes)
            ]
            statement = self._store.replacing(access, "site", "role", "hash", "revision")
            for first in range(0, len(rows), 1000):
                connection.execute(statement, rows[first : first + 1000])

    def _next(self, connection: sa.Connection) -> int:
        if connection.dialect.name == "postgresql":
            # Two that read the same highest revision would hide one change from a site.
            connection.execute(sa.text("LOCK TABLE access IN EXCLUSIVE MODE"))
        return 1 + int(connection.execute(sa.select(sa.func.max(access.c.revision))).scalar() or 0)

    def changes(self, site: str, since: int, limit: int = 500) -> tuple[Login, ...]:
        """What has changed at a site since a revision, oldest first."""
        query = (
            sa.select(access.c.name, access.c.role, access.c.hash, access.c.revision)
            .where(access.c.site == site, access.c.revision > since)
            .order_by(access.c.revision)
            .limit(limit)
        )
        with self._store.reading() as connection:
            return tuple(Login(*row) for row in connection.execute(query))
