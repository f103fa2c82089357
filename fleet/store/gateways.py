"""Gateways, and who may log in at which site's broker, in a store's database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from fleet.errors import TakenNameError, UnknownGatewayError
from fleet.registry import Observed
from fleet.store.sql import SqlStore
from fleet.store.tables import access, gateways, registry

DEVICE, GATEWAY = "device", "gateway"
_AT_ONCE = 500
"""Rows of a statement."""
_REVISIONS_A_SECOND_BITS = 20
"""A site of a hundred thousand devices is registered in one transaction. The floor that a restored
store has counts seconds, and has to stay above whatever was given before."""


@dataclass(frozen=True)
class GatewayRecord:
    """A gateway; `last_seen` (Unix time) is None until it has been heard of.

    One that is `retired` is gone: only its record is kept.
    """

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

    def add(self, gateway: str, site: str) -> GatewayRecord | None:
        """A new one, or one that was retired and is brought back: then what it was.

        Raises `TakenNameError` where it is in use already.
        """
        row = {
            "gateway": gateway,
            "site": site,
            "added": self._store.clock.wall(),
            "retired": False,
            "last_seen": None,
            "problem": "",
        }
        with self._store.writing() as connection:
            added = connection.execute(
                self._store.inserting_new(gateways).returning(gateways.c.gateway), row
            ).first()
            if added is not None:
                return None
            before = self.get(gateway)
            if not before.retired:
                raise TakenNameError(f"gateway {gateway} is in the registry already")
            del row["gateway"]
            self._change(gateway, **row)
            return before

    def get(self, gateway: str) -> GatewayRecord:
        """One gateway. Raises `UnknownGatewayError` where nobody has added it."""
        query = sa.select(gateways).where(gateways.c.gateway == gateway)
        with self._store.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise UnknownGatewayError(
                f"the registry has no gateway {gateway}; `tinyfleet gateways list` has all"
            )
        return GatewayRecord(**row._mapping)

    def retire(self, gateway: str) -> None:
        """It takes part in nothing any more, and what only it has heard of devices is forgotten."""
        self.get(gateway)
        with self._store.writing():
            self._change(gateway, retired=True, problem="")
            self.forget_devices(gateway)

    def forget_devices(self, gateway: str) -> None:
        """What a retired gateway was the last to tell of devices counts as not heard."""
        gone = sa.select(gateways.c.gateway).where(
            gateways.c.gateway == gateway, gateways.c.retired
        )
        unheard = dict.fromkeys(Observed.model_fields)
        with self._store.writing() as connection:
            connection.execute(
                sa.update(registry).where(registry.c.gateway.in_(gone)).values(unheard)
            )

    def retired(self) -> frozenset[str]:
        """The names of those that are."""
        query = sa.select(gateways.c.gateway).where(gateways.c.retired)
        with self._store.reading() as connection:
            return frozenset(connection.execute(query).scalars())

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

    def seen_though_retired(self, gateway: str) -> None:
        """It should be gone, and has just dialled in."""
        problem = "it is retired and still dials in: stop it, or add it again"
        self._change(gateway, last_seen=self._store.clock.wall(), problem=problem)

    def _change(self, gateway: str, **values: object) -> None:
        with self._store.writing() as connection:
            connection.execute(
                sa.update(gateways).where(gateways.c.gateway == gateway).values(values)
            )


class Logins:
    """Who may log in at which site's broker. Only hashes of passwords are kept.

    Every change has a revision, so that a site can be told what has changed since. Somebody is let
    in at one site: whoever is granted another one isn't at the one before any more.
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
        """Let somebody in no more, wherever they were."""
        with self._store.writing() as connection:
            self._take_away(connection, self._next(connection), [name], "")

    def _set(self, hashes: list[tuple[str, str | None]], site: str, role: str) -> None:
        with self._store.writing() as connection:
            revision = self._next(connection)
            # Somebody who was at another site before is let in there no more.
            names = [name for name, _ in hashes]
            revision = self._take_away(connection, revision, names, site)
            rows = [
                {"name": name, "site": site, "role": role, "hash": hash, "revision": revision + at}
                for at, (name, hash) in enumerate(hashes)
            ]
            statement = self._store.replacing(access, "role", "hash", "revision")
            for first in range(0, len(rows), _AT_ONCE):
                connection.execute(statement, rows[first : first + _AT_ONCE])

    def _take_away(
        self, connection: sa.Connection, revision: int, names: Sequence[str], but: str
    ) -> int:
        """Revoke names at all sites but one, each change with a revision; gives the next one."""
        statement = (
            sa.update(access)
            .where(access.c.name == sa.bindparam("who"), access.c.site == sa.bindparam("at"))
            .values(hash=None, revision=sa.bindparam("number"))
        )
        for first in range(0, len(names), _AT_ONCE):
            query = sa.select(access.c.name, access.c.site).where(
                access.c.name.in_(names[first : first + _AT_ONCE]),
                access.c.site != but,
                access.c.hash.is_not(None),
            )
            found = connection.execute(query.order_by(access.c.revision)).all()
            rows = [
                {"who": name, "at": site, "number": revision + at}
                for at, (name, site) in enumerate(found)
            ]
            if rows:
                connection.execute(statement, rows)
            revision += len(rows)
        return revision

    def _next(self, connection: sa.Connection) -> int:
        if connection.dialect.name == "postgresql":
            # Two that read the same highest revision would hide one change from a site.
            connection.execute(sa.text("LOCK TABLE access IN EXCLUSIVE MODE"))
        last = int(connection.execute(sa.select(sa.func.max(access.c.revision))).scalar() or 0)
        return 1 + max(last, self._store.floor(connection) << _REVISIONS_A_SECOND_BITS)

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
