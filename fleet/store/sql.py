"""Campaigns in a database."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from fleet.errors import StoreError, UnknownCampaignError
from fleet.store import figures, tables
from fleet.store.base import (
    ENDED_STATES,
    WISHES,
    CampaignRecord,
    Lease,
    Part,
    RoundRecord,
    RoundSummary,
    Store,
    SupersededError,
    WeightsVersion,
    raised,
)
from fleet.store.database import Database

_CAMPAIGN = tuple(
    tables.campaigns.c[name]
    for name in (
        *("id", "config", "state", "reason", "driver", "driver_seen"),
        *("wish", "waiting", "author", "created", "base", "made"),
    )
)
_ROUND = tuple(tables.rounds.c[name] for name in ("number", "kind", "plan", "state", "result"))
_WEIGHTS = tuple(
    tables.weights.c[name] for name in ("version", "sha256", "blob", "master", "rule_state")
)
_SUMMARY = tuple(
    tables.rounds.c[name]
    for name in ("number", "kind", "state", "asked", "wanted", "accepted", "revision")
)
_REPORT = tuple(column for column in tables.reports.c if column.name not in ("campaign", "round"))


def _campaign_record(row: Sequence[Any]) -> CampaignRecord:
    return CampaignRecord(*row)


def _round_record(row: Sequence[Any]) -> RoundRecord:
    return RoundRecord(row[0], row[1], json.loads(row[2]), row[3], json.loads(row[4]))


class SqlStore(Database, Store):
    """See `Store`. Safe for several threads and processes; writers wait for each other."""

    # Campaigns

    def _campaign(
        self, connection: sa.Connection, campaign: str, is_locked: bool = False
    ) -> CampaignRecord:
        query = sa.select(*_CAMPAIGN).where(tables.campaigns.c.id == campaign)
        row = connection.execute(query.with_for_update() if is_locked else query).first()
        if row is None:
            raise UnknownCampaignError(f"the store has no campaign {campaign}")
        return _campaign_record(row)

    def locked(self, connection: sa.Connection, campaign: str) -> CampaignRecord:
        """The record within a transaction that writes; others' writes of it wait for the end."""
        return self._campaign(connection, campaign, is_locked=True)

    def check_driver(self, connection: sa.Connection, campaign: str, driver: str) -> CampaignRecord:
        """The record within a transaction that writes; SupersededError where another drives it."""
        record = self.locked(connection, campaign)
        if driver and record.driver != driver:
            raise SupersededError(
                f"campaign {campaign} was taken over by {record.driver or 'the operator'}"
            )
        return record

    def _change(self, connection: sa.Connection, campaign: str, **values: Any) -> None:
        table = tables.campaigns
        connection.execute(sa.update(table).where(table.c.id == campaign).values(values))

    def _next_revision(self, connection: sa.Connection, campaign: str) -> int:
        table = tables.campaigns
        return int(
            connection.execute(
                sa.update(table)
                .where(table.c.id == campaign)
                .values(revision=table.c.revision + 1)
                .returning(table.c.revision)
            ).scalar_one()
        )

    def create_campaign(
        self,
        campaign: str,
        config: str,
        manifests: Mapping[str, str],
        weights: WeightsVersion,
        author: str = "",
        base: str = "",
    ) -> None:
        """See `Store`."""
        with self.writing() as connection:
            added = connection.execute(
                self.inserting_new(tables.campaigns).returning(tables.campaigns.c.id),
                {
                    "id": campaign,
                    "config": config,
                    "state": "pending",
                    "reason": "",
                    "driver": "",
                    "driver_seen": 0.0,
                    "revision": 0,
                    "author": author,
                    "created": self.clock.wall(),
                    "base": base,
                },
            ).first()
            if added is None:
                raise StoreError(f"the store has a campaign {campaign} already; choose another id")
            rows = [
                {"campaign": campaign, "bundle": bundle, "text": text}
                for bundle, text in manifests.items()
            ]
            if rows:
                connection.execute(sa.insert(tables.manifests), rows)
            self._insert_weights(connection, campaign, weights)

    def _insert_weights(
        self, connection: sa.Connection, campaign: str, weights: WeightsVersion
    ) -> None:
        table = tables.weights
        where = (table.c.campaign == campaign) & (table.c.version == weights.version)
        if connection.execute(sa.select(table.c.version).where(where)).first():
            raise StoreError(f"campaign {campaign} has weights version {weights.version} already")
        connection.execute(
            sa.insert(table),
            {
                "campaign": campaign,
                "version": weights.version,
                "sha256": weights.sha256,
                "blob": weights.blob,
                "master": weights.master,
                "rule_state": weights.rule_state,
            },
        )

    def campaign(self, campaign: str) -> CampaignRecord:
        """See `Store`."""
        with self.reading() as connection:
            return self._campaign(connection, campaign)

    def campaigns(self) -> tuple[CampaignRecord, ...]:
        """See `Store`."""
        query = sa.select(*_CAMPAIGN).order_by(tables.campaigns.c.position)
        with self.reading() as connection:
            return tuple(map(_campaign_record, connection.execute(query)))

    def campaign_page(
        self, after: str, limit: int, states: Collection[str] = ()
    ) -> tuple[CampaignRecord, ...]:
        """See `Store`."""
        table = tables.campaigns
        query = sa.select(*_CAMPAIGN).order_by(table.c.position.desc()).limit(limit)
        if states:
            query = query.where(table.c.state.in_(states))
        with self.reading() as connection:
            if after:
                self._campaign(connection, after)
                position = sa.select(table.c.position).where(table.c.id == after).scalar_subquery()
                query = query.where(table.c.position < position)
            return tuple(map(_campaign_record, connection.execute(query)))

    def campaigns_under_way(self) -> tuple[CampaignRecord, ...]:
        """See `Store`."""
        table = tables.campaigns
        query = sa.select(*_CAMPAIGN).where(table.c.state.not_in(ENDED_STATES))
        with self.reading() as connection:
            return tuple(
                map(_campaign_record, connection.execute(query.order_by(table.c.position)))
            )

    def manifests(self, campaign: str) -> dict[str, str]:
        """See `Store`."""
        table = tables.manifests
        query = sa.select(table.c.bundle, table.c.text).where(table.c.campaign == campaign)
        with self.reading() as connection:
            self._campaign(connection, campaign)
            rows = connection.execute(query.order_by(table.c.bundle))
            return {row[0]: row[1] for row in rows}

    def claim(self, campaign: str, driver: str) -> CampaignRecord:
        """See `Store`."""
        with self.writing() as connection:
            record = self.locked(connection, campaign)
            if record.state not in ENDED_STATES:
                state = "running" if record.state == "pending" else record.state
                self._change(connection, campaign, state=state, driver=driver)
            return self._campaign(connection, campaign)

    def driver_lives(self, campaign: str, driver: str, now: float) -> CampaignRecord:
        """See `Store`."""
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            self._change(connection, campaign, driver_seen=now)
            return self._campaign(connection, campaign)

    def end_campaign(self, campaign: str, driver: str, state: str, reason: str = "") -> None:
        """See `Store`."""
        if state not in ENDED_STATES:
            raise StoreError(f"{state} isn't a state in which a campaign ends")
        with self.writing() as connection:
            if self.check_driver(connection, campaign, driver).state not in ENDED_STATES:
                self._change(connection, campaign, state=state, reason=reason, waiting="")

    def set_state(
        self, campaign: str, driver: str, state: str, reason: str = "", waiting: str = ""
    ) -> None:
        """See `Store`."""
        with self.writing() as connection:
            before = self.check_driver(connection, campaign, driver)
            if before.state in ENDED_STATES:
                raise StoreError(f"campaign {campaign} has ended ({before.state}) already")
            self._change(connection, campaign, state=state, reason=reason, waiting=waiting)

    def ask(self, campaign: str, wish: str) -> None:
        """See `Store`."""
        if wish not in WISHES:
            raise StoreError(f"{wish!r} is nothing that a campaign can be asked for")
        with self.writing() as connection:
            record = self.locked(connection, campaign)
            if record.state in ENDED_STATES:
                raise StoreError(f"campaign {campaign} has ended ({record.state}) already")
            self._change(connection, campaign, wish=wish)

    # Weights

    def latest_weights(self, campaign: str) -> WeightsVersion:
        """See `Store`."""
        query = (
            sa.select(*_WEIGHTS)
            .where(tables.weights.c.campaign == campaign)
            .order_by(tables.weights.c.version.desc())
            .limit(1)
        )
        with self.reading() as connection:
            self._campaign(connection, campaign)
            return WeightsVersion(*connection.execute(query).one())

    def weights(self, campaign: str, version: int) -> WeightsVersion:
        """See `Store`."""
        table = tables.weights
        query = sa.select(*_WEIGHTS).where(table.c.campaign == campaign, table.c.version == version)
        with self.reading() as connection:
            row = connection.execute(query).first()
            if row is None:
                self._campaign(connection, campaign)
                raise StoreError(f"campaign {campaign} has no weights version {version}")
            return WeightsVersion(*row)

    def blob_bytes(self, campaign: str) -> int:
        """How long a version of the campaign's weights is, as devices get it."""
        table = tables.weights
        query = sa.select(sa.func.length(table.c.blob)).where(table.c.campaign == campaign)
        with self.reading() as connection:
            return int(connection.execute(query.limit(1)).scalar() or 0)

    def weights_with(self, campaign: str, sha256: str) -> WeightsVersion | None:
        """See `Store`."""
        table = tables.weights
        query = sa.select(*_WEIGHTS).where(table.c.campaign == campaign, table.c.sha256 == sha256)
        with self.reading() as connection:
            row = connection.execute(query.limit(1)).first()
            return None if row is None else WeightsVersion(*row)

    def weight_digests(self, campaign: str) -> frozenset[str]:
        """See `Store`."""
        query = sa.select(tables.weights.c.sha256).where(tables.weights.c.campaign == campaign)
        with self.reading() as connection:
            return frozenset(connection.execute(query).scalars())

    def note_made(self, campaign: str, driver: str, version: str) -> None:
        """See `Store`."""
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            self._change(connection, campaign, made=version)

    def reopen(self, campaign: str) -> None:
        """See `Store`."""
        with self.writing() as connection:
            record = self.locked(connection, campaign)
            if record.state not in ENDED_STATES:
                raise StoreError(f"campaign {campaign} is {record.state}")
            self._change(
                connection,
                campaign,
                state="rolling-back",
                reason="asked for by the operator",
                wish="",
            )

    # Leases and quarantine

    def take_leases(
        self, campaign: str, driver: str, devices: Mapping[str, int]
    ) -> dict[str, Lease]:
        """See `Store`."""
        taken: dict[str, Lease] = {}
        changed = []
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            known = self._known_leases(connection, devices)
            floor = self.floor(connection)
            for device, seen in devices.items():
                holder, number, state = known.get(device, ("", 0, ""))
                if holder not in ("", campaign) and state not in ENDED_STATES:
                    taken[device] = Lease(holder, number)
                    continue
                least = max(seen, floor)
                if holder != campaign or number < least:
                    number = max(number, least) + 1
                    changed.append({"device": device, "campaign": campaign, "number": number})
                taken[device] = Lease(campaign, number)
            if changed:
                connection.execute(self.replacing(tables.leases, "campaign", "number"), changed)
        return taken

    def _known_leases(
        self, connection: sa.Connection, devices: Mapping[str, int]
    ) -> dict[str, tuple[str, int, str]]:
        """Holder, number and state of the holder, for those of `devices` that ever had a lease."""
        if connection.dialect.name == "postgresql":
            # Rows that don't exist yet can't be locked: one campaign takes leases at a time.
            connection.execute(sa.text("LOCK TABLE leases IN EXCLUSIVE MODE"))
        leases, campaigns = tables.leases, tables.campaigns
        query = sa.select(
            leases.c.device, leases.c.campaign, leases.c.number, campaigns.c.state
        ).join(campaigns, campaigns.c.id == leases.c.campaign)
        found: dict[str, tuple[str, int, str]] = {}
        names = list(devices)
        for first in range(0, len(names), _NAMES_AT_ONCE):
            some = names[first : first + _NAMES_AT_ONCE]
            for device, *rest in connection.execute(query.where(leases.c.device.in_(some))):
                found[device] = (rest[0], rest[1], rest[2])
        return found

    def quarantine(self, campaign: str, driver: str, gateway: str, reason: str) -> None:
        """See `Store`."""
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            connection.execute(
                self.inserting_new(tables.quarantines),
                {"campaign": campaign, "gateway": gateway, "reason": reason},
            )

    def quarantined(self, campaign: str) -> dict[str, str]:
        """See `Store`."""
        table = tables.quarantines
        query = sa.select(table.c.gateway, table.c.reason).where(table.c.campaign == campaign)
        with self.reading() as connection:
            self._campaign(connection, campaign)
            rows = connection.execute(query.order_by(table.c.gateway))
            return {row[0]: row[1] for row in rows}

    # Rounds

    def begin_round(
        self, campaign: str, driver: str, number: int, kind: str, plan: Mapping[str, Any]
    ) -> RoundRecord:
        """See `Store`."""
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            now = self.clock.wall()
            is_new = connection.execute(
                self.inserting_new(tables.rounds).returning(tables.rounds.c.number),
                {
                    "campaign": campaign,
                    "number": number,
                    "kind": kind,
                    "plan": json.dumps(dict(plan)),
                    "state": "running",
                    "result": "{}",
                    "asked": len(plan.get("assignments", ())),
                    "wanted": int(plan.get("wanted", 0)),
                    "accepted": 0,
                    "revision": self._next_revision(connection, campaign),
                    "began": now,
                    "weights": _weights_of(plan),
                    "on_wire": number + int(plan.get("offset", 0)),
                },
            ).first()
            if is_new and plan.get("privacy"):
                spent = {"campaign": campaign, "round": number, "rho": plan["privacy"]["rho"]}
                rows = [
                    {**spent, "device": one["device"], "at": now} for one in plan["assignments"]
                ]
                connection.execute(sa.insert(tables.ledger), rows)
            if not figures.kept(connection, campaign, number):
                self._keep_figures(connection, campaign, number, figures.planned(plan))
            return self._round(connection, campaign, number)

    def note_progress(
        self,
        campaign: str,
        driver: str,
        number: int,
        accepted: int,
        told: Mapping[str, Any] | None = None,
    ) -> None:
        """See `Store`."""
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            revision = self._next_revision(connection, campaign)
            self._change_round(connection, campaign, number, accepted=accepted, revision=revision)
            if told:
                self._keep_figures(connection, campaign, number, told)

    def _keep_figures(
        self, connection: sa.Connection, campaign: str, number: int, told: Mapping[str, Any]
    ) -> None:
        whole = {**figures.kept(connection, campaign, number), **told}
        figures.keep(connection, self.replacing(tables.figures, "text"), campaign, number, whole)

    def _change_round(
        self, connection: sa.Connection, campaign: str, number: int, **values: Any
    ) -> None:
        table = tables.rounds
        where = (table.c.campaign == campaign) & (table.c.number == number)
        if not connection.execute(sa.update(table).where(where).values(values)).rowcount:
            raise UnknownCampaignError(f"campaign {campaign} has no round {number}")

    def finish_round(
        self,
        campaign: str,
        driver: str,
        number: int,
        state: str,
        result: Mapping[str, Any],
        reports: Sequence[Mapping[str, Any]],
        weights: WeightsVersion | None,
    ) -> bool:
        """See `Store`."""
        rows = [
            {
                **{column.name: one.get(column.name) for column in _REPORT},
                "campaign": campaign,
                "round": number,
            }
            for one in reports
        ]
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            if self._round(connection, campaign, number).state != "running":
                return False
            if weights is not None:
                self._insert_weights(connection, campaign, weights)
            if rows:
                connection.execute(sa.insert(tables.reports), rows)
            self._change_round(
                connection,
                campaign,
                number,
                state=state,
                result=json.dumps(dict(result)),
                accepted=int(result.get("accepted", 0)),
                revision=self._next_revision(connection, campaign),
                ended=self.clock.wall(),
            )
            told = figures.ended(connection, campaign, number, result)
            self._keep_figures(connection, campaign, number, told)
            return True

    def make_version(
        self, campaign: str, driver: str, weights: WeightsVersion, parts: Sequence[Part]
    ) -> None:
        """See `Store`."""
        rows = [{"campaign": campaign, "version": weights.version, **asdict(one)} for one in parts]
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            self._insert_weights(connection, campaign, weights)
            if rows:
                connection.execute(sa.insert(tables.parts), rows)

    def parts(self, campaign: str) -> tuple[Part, ...]:
        """See `Store`."""
        table = tables.parts
        query = sa.select(table.c.round, table.c.gateway, table.c.part, table.c.through)
        query = query.where(table.c.campaign == campaign)
        with self.reading() as connection:
            self._campaign(connection, campaign)
            ordered = query.order_by(table.c.round, table.c.gateway, table.c.part)
            return tuple(Part(*row) for row in connection.execute(ordered))

    def raise_counters(
        self, campaign: str, driver: str, on_wire: int, counters: Mapping[str, Any]
    ) -> bool:
        """See `Store`."""
        table = tables.rounds
        query = sa.select(table.c.number, table.c.result).where(
            table.c.campaign == campaign, table.c.on_wire == on_wire, table.c.state == "done"
        )
        with self.writing() as connection:
            self.check_driver(connection, campaign, driver)
            row = connection.execute(query).first()
            if row is None:
                return False
            merged = json.dumps(raised(json.loads(row[1]), counters))
            self._change_round(connection, campaign, row[0], result=merged)
            return True

    def round_offset(self) -> int:
        """See `Store`."""
        with self.reading() as connection:
            return self.floor(connection)

    def knows_round(self, campaign: str, on_wire: int) -> bool:
        """See `Store`."""
        table = tables.rounds
        query = sa.select(table.c.number).where(
            table.c.campaign == campaign, table.c.on_wire == on_wire
        )
        with self.reading() as connection:
            return connection.execute(query).first() is not None

    def _round(self, connection: sa.Connection, campaign: str, number: int) -> RoundRecord:
        table = tables.rounds
        query = sa.select(*_ROUND).where(table.c.campaign == campaign, table.c.number == number)
        row = connection.execute(query).first()
        if row is None:
            self._campaign(connection, campaign)
            raise UnknownCampaignError(f"campaign {campaign} has no round {number}")
        return _round_record(row)

    def round(self, campaign: str, number: int) -> RoundRecord:
        """See `Store`."""
        with self.reading() as connection:
            return self._round(connection, campaign, number)

    def rounds(self, campaign: str) -> tuple[RoundRecord, ...]:
        """See `Store`."""
        table = tables.rounds
        query = sa.select(*_ROUND).where(table.c.campaign == campaign).order_by(table.c.number)
        with self.reading() as connection:
            self._campaign(connection, campaign)
            return tuple(map(_round_record, connection.execute(query)))

    def round_times(self, campaign: str, number: int) -> tuple[float, float | None]:
        """See `Store`."""
        table = tables.rounds
        query = sa.select(table.c.began, table.c.ended)
        query = query.where(table.c.campaign == campaign, table.c.number == number)
        with self.reading() as connection:
            row = connection.execute(query).first()
            if row is None:
                raise UnknownCampaignError(f"campaign {campaign} has no round {number}")
            return row[0], row[1]

    def round_summaries(self, campaign: str, since: int = 0) -> tuple[RoundSummary, ...]:
        """See `Store`."""
        table = tables.rounds
        query = sa.select(*_SUMMARY).where(table.c.campaign == campaign, table.c.revision > since)
        with self.reading() as connection:
            rows = connection.execute(query.order_by(table.c.number))
            return tuple(RoundSummary(*row) for row in rows)

    def reports(self, campaign: str, number: int) -> tuple[dict[str, Any], ...]:
        """See `Store`."""
        table = tables.reports
        query = sa.select(*_REPORT).where(table.c.campaign == campaign, table.c.round == number)
        with self.reading() as connection:
            self._campaign(connection, campaign)
            rows = connection.execute(query.order_by(table.c.device)).mappings()
            return tuple(
                {name: value for name, value in row.items() if value is not None} for row in rows
            )


def _weights_of(plan: Mapping[str, Any]) -> str:
    """What all of a round's devices begin with; empty where they begin with different versions."""
    if any(one.get("weights") for one in plan.get("assignments", ())):
        return ""
    return str(plan.get("weights", ""))


_NAMES_AT_ONCE = 500
"""Databases limit the parameters of a statement."""
