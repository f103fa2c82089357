"""The store as an SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fleet.errors import StoreError
from fleet.store.base import (
    ENDED_STATES,
    CampaignRecord,
    Lease,
    RoundRecord,
    RoundSummary,
    Store,
    SupersededError,
    WeightsVersion,
    raised,
)

SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE campaigns (
    id TEXT PRIMARY KEY, config TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'pending',
    reason TEXT NOT NULL DEFAULT '', driver TEXT NOT NULL DEFAULT '',
    stop_requested INTEGER NOT NULL DEFAULT 0, driver_seen REAL NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL DEFAULT 0, position INTEGER NOT NULL);
CREATE TABLE manifests (
    campaign TEXT NOT NULL REFERENCES campaigns, bundle TEXT NOT NULL, text TEXT NOT NULL,
    PRIMARY KEY (campaign, bundle));
CREATE TABLE weights (
    campaign TEXT NOT NULL REFERENCES campaigns, version INTEGER NOT NULL,
    sha256 TEXT NOT NULL, blob BLOB NOT NULL, master BLOB NOT NULL, rule_state BLOB NOT NULL,
    PRIMARY KEY (campaign, version));
CREATE TABLE devices (
    campaign TEXT NOT NULL REFERENCES campaigns, device TEXT NOT NULL, fields TEXT NOT NULL,
    PRIMARY KEY (campaign, device));
CREATE TABLE rounds (
    campaign TEXT NOT NULL REFERENCES campaigns, number INTEGER NOT NULL, kind TEXT NOT NULL,
    plan TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'running', result TEXT NOT NULL DEFAULT '{}',
    asked INTEGER NOT NULL, wanted INTEGER NOT NULL, accepted INTEGER NOT NULL DEFAULT 0,
    revision INTEGER NOT NULL, PRIMARY KEY (campaign, number));
CREATE INDEX rounds_by_revision ON rounds (campaign, revision);
CREATE TABLE leases (
    device TEXT PRIMARY KEY, campaign TEXT NOT NULL REFERENCES campaigns,
    number INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE quarantines (
    campaign TEXT NOT NULL REFERENCES campaigns, gateway TEXT NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (campaign, gateway));
CREATE TABLE reports (
    campaign TEXT NOT NULL REFERENCES campaigns, round INTEGER NOT NULL, device TEXT NOT NULL,
    fields TEXT NOT NULL, PRIMARY KEY (campaign, round, device));
"""

_CAMPAIGN_COLUMNS = "id, config, state, reason, driver, stop_requested, driver_seen"
_ROUND_COLUMNS = "number, kind, plan, state, result"
_WEIGHTS_COLUMNS = "version, sha256, blob, master, rule_state"


def _campaign_record(row: Sequence[Any]) -> CampaignRecord:
    return CampaignRecord(row[0], row[1], row[2], row[3], row[4], bool(row[5]), row[6])


def _round_record(row: Sequence[Any]) -> RoundRecord:
    return RoundRecord(row[0], row[1], json.loads(row[2]), row[3], json.loads(row[4]))


class SqliteStore(Store):
    """See `Store`. Safe for several threads and processes; writers wait for each other."""

    def __init__(self, path: Path | None = None) -> None:
        """Open the file, or create it; without one, all is in the memory of this object.

        Raises `StoreError` where the file can't be used.
        """
        self._name = str(path or "the store in memory")
        self._lock = threading.RLock()
        with self._errors_named():
            self._db = sqlite3.connect(
                path or ":memory:", timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            # A commit has to survive a power cut: accepted deltas hang on it.
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
        with self._transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StoreError(
                    f"{self._name} has schema version {version}, this program knows "
                    f"{SCHEMA_VERSION}: use the program that wrote it, or another file"
                )

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._name} can't be used as a campaign store ({error}); "
                "check its path, its rights and the free space"
            ) from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._errors_named():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def _row(self, statement: str, *values: Any) -> Any:
        with self._lock, self._errors_named():
            return self._db.execute(statement, values).fetchone()

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock, self._errors_named():
            return self._db.execute(statement, values).fetchall()

    def _next_revision(self, campaign: str) -> int:
        (revision,) = self._row(
            "UPDATE campaigns SET revision = revision + 1 WHERE id = ? RETURNING revision",
            campaign,
        )
        return int(revision)

    def _check(self, campaign: str, driver: str) -> CampaignRecord:
        record = self.campaign(campaign)
        if driver and record.driver != driver:
            raise SupersededError(
                f"campaign {campaign} was taken over by {record.driver or 'the operator'}"
            )
        return record

    def create_campaign(
        self, campaign: str, config: str, manifests: Mapping[str, str], weights: WeightsVersion
    ) -> None:
        """See `Store`."""
        with self._transaction():
            if self._row("SELECT 1 FROM campaigns WHERE id = ?", campaign):
                raise StoreError(f"the store has a campaign {campaign} already; choose another id")
            self._db.execute(
                "INSERT INTO campaigns (id, config, position) "
                "VALUES (?, ?, (SELECT COUNT(*) FROM campaigns))",
                (campaign, config),
            )
            self._db.executemany(
                "INSERT INTO manifests VALUES (?, ?, ?)",
                [(campaign, bundle, text) for bundle, text in manifests.items()],
            )
            self._insert_weights(campaign, weights)

    def _insert_weights(self, campaign: str, weights: WeightsVersion) -> None:
        if self._row(
            "SELECT 1 FROM weights WHERE campaign = ? AND version = ?", campaign, weights.version
        ):
            raise StoreError(f"campaign {campaign} has weights version {weights.version} already")
        self._db.execute(
            "INSERT INTO weights VALUES (?, ?, ?, ?, ?, ?)",
            (
                campaign,
                weights.version,
                weights.sha256,
                weights.blob,
                weights.master,
                weights.rule_state,
            ),
        )

    def campaign(self, campaign: str) -> CampaignRecord:
        """See `Store`."""
        row = self._row(f"SELECT {_CAMPAIGN_COLUMNS} FROM campaigns WHERE id = ?", campaign)
        if row is None:
            raise StoreError(f"the store has no campaign {campaign}")
        return _campaign_record(row)

    def campaigns(self) -> tuple[CampaignRecord, ...]:
        """See `Store`."""
        rows = self._rows(f"SELECT {_CAMPAIGN_COLUMNS} FROM campaigns ORDER BY position")
        return tuple(_campaign_record(row) for row in rows)

    def manifests(self, campaign: str) -> dict[str, str]:
        """See `Store`."""
        self.campaign(campaign)
        rows = self._rows(
            "SELECT bundle, text FROM manifests WHERE campaign = ? ORDER BY bundle", campaign
        )
        return dict(rows)

    def claim(self, campaign: str, driver: str) -> CampaignRecord:
        """See `Store`."""
        with self._transaction():
            record = self.campaign(campaign)
            if record.state not in ENDED_STATES:
                self._db.execute(
                    "UPDATE campaigns SET state = 'running', driver = ? WHERE id = ?",
                    (driver, campaign),
                )
            return self.campaign(campaign)

    def driver_lives(self, campaign: str, driver: str, now: float) -> CampaignRecord:
        """See `Store`."""
        with self._transaction():
            self._check(campaign, driver)
            self._db.execute("UPDATE campaigns SET driver_seen = ? WHERE id = ?", (now, campaign))
            return self.campaign(campaign)

    def end_campaign(self, campaign: str, driver: str, state: str, reason: str = "") -> None:
        """See `Store`."""
        if state not in ENDED_STATES:
            raise StoreError(f"{state} isn't a state in which a campaign ends")
        with self._transaction():
            if self._check(campaign, driver).state not in ENDED_STATES:
                self._db.execute(
                    "UPDATE campaigns SET state = ?, reason = ? WHERE id = ?",
                    (state, reason, campaign),
                )

    def request_stop(self, campaign: str) -> None:
        """See `Store`."""
        with self._transaction():
            self.campaign(campaign)
            self._db.execute("UPDATE campaigns SET stop_requested = 1 WHERE id = ?", (campaign,))

    def latest_weights(self, campaign: str) -> WeightsVersion:
        """See `Store`."""
        self.campaign(campaign)
        row = self._row(
            f"SELECT {_WEIGHTS_COLUMNS} FROM weights WHERE campaign = ? "
            "ORDER BY version DESC LIMIT 1",
            campaign,
        )
        return WeightsVersion(*row)

    def weights(self, campaign: str, version: int) -> WeightsVersion:
        """See `Store`."""
        row = self._row(
            f"SELECT {_WEIGHTS_COLUMNS} FROM weights WHERE campaign = ? AND version = ?",
            campaign,
            version,
        )
        if row is None:
            self.campaign(campaign)
            raise StoreError(f"campaign {campaign} has no weights version {version}")
        return WeightsVersion(*row)

    def save_devices(self, campaign: str, devices: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Store`."""
        with self._transaction():
            self.campaign(campaign)
            self._db.executemany(
                "INSERT OR REPLACE INTO devices VALUES (?, ?, ?)",
                [(campaign, name, json.dumps(dict(fields))) for name, fields in devices.items()],
            )

    def devices(self, campaign: str) -> dict[str, dict[str, Any]]:
        """See `Store`."""
        self.campaign(campaign)
        rows = self._rows(
            "SELECT device, fields FROM devices WHERE campaign = ? ORDER BY device", campaign
        )
        return {name: json.loads(text) for name, text in rows}

    def begin_round(
        self, campaign: str, driver: str, number: int, kind: str, plan: Mapping[str, Any]
    ) -> RoundRecord:
        """See `Store`."""
        with self._transaction():
            self._check(campaign, driver)
            self._db.execute(
                "INSERT OR IGNORE INTO rounds "
                "(campaign, number, kind, plan, asked, wanted, revision) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    campaign,
                    number,
                    kind,
                    json.dumps(dict(plan)),
                    len(plan.get("assignments", ())),
                    int(plan.get("wanted", 0)),
                    self._next_revision(campaign),
                ),
            )
            return self.round(campaign, number)

    def note_progress(self, campaign: str, driver: str, number: int, accepted: int) -> None:
        """See `Store`."""
        with self._transaction():
            self._check(campaign, driver)
            changed = self._db.execute(
                "UPDATE rounds SET accepted = ?, revision = ? WHERE campaign = ? AND number = ?",
                (accepted, self._next_revision(campaign), campaign, number),
            )
            if not changed.rowcount:
                raise StoreError(f"campaign {campaign} has no round {number}")

    def take_leases(
        self, campaign: str, driver: str, devices: Mapping[str, int]
    ) -> dict[str, Lease]:
        """See `Store`."""
        leases: dict[str, Lease] = {}
        with self._transaction():
            self._check(campaign, driver)
            for device, seen in devices.items():
                row = self._row(
                    "SELECT leases.campaign, number, state FROM leases "
                    "JOIN campaigns ON campaigns.id = leases.campaign WHERE device = ?",
                    device,
                )
                holder, number, state = row or ("", 0, "")
                if holder not in ("", campaign) and state not in ENDED_STATES:
                    leases[device] = Lease(holder, number)
                    continue
                if holder != campaign or number < seen:
                    number = max(number, seen) + 1
                    self._db.execute(
                        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (device, campaign, number)
                    )
                leases[device] = Lease(campaign, number)
        return leases

    def quarantine(self, campaign: str, driver: str, gateway: str, reason: str) -> None:
        """See `Store`."""
        with self._transaction():
            self._check(campaign, driver)
            self._db.execute(
                "INSERT OR IGNORE INTO quarantines VALUES (?, ?, ?)", (campaign, gateway, reason)
            )

    def quarantined(self, campaign: str) -> dict[str, str]:
        """See `Store`."""
        self.campaign(campaign)
        return dict(
            self._rows(
                "SELECT gateway, reason FROM quarantines WHERE campaign = ? ORDER BY gateway",
                campaign,
            )
        )

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
        with self._transaction():
            self._check(campaign, driver)
            if self.round(campaign, number).state != "running":
                return False
            if weights is not None:
                self._insert_weights(campaign, weights)
            self._db.executemany(
                "INSERT OR REPLACE INTO reports VALUES (?, ?, ?, ?)",
                [(campaign, number, str(one["device"]), json.dumps(dict(one))) for one in reports],
            )
            self._db.execute(
                "UPDATE rounds SET state = ?, result = ?, accepted = ?, revision = ? "
                "WHERE campaign = ? AND number = ?",
                (
                    state,
                    json.dumps(dict(result)),
                    int(result.get("accepted", 0)),
                    self._next_revision(campaign),
                    campaign,
                    number,
                ),
            )
            return True

    def raise_counters(
        self, campaign: str, driver: str, number: int, counters: Mapping[str, Any]
    ) -> bool:
        """See `Store`."""
        with self._transaction():
            self._check(campaign, driver)
            row = self._row(
                "SELECT result FROM rounds WHERE campaign = ? AND number = ? AND state = 'done'",
                campaign,
                number,
            )
            if row is None:
                return False
            self._db.execute(
                "UPDATE rounds SET result = ? WHERE campaign = ? AND number = ?",
                (json.dumps(raised(json.loads(row[0]), counters)), campaign, number),
            )
            return True

    def round(self, campaign: str, number: int) -> RoundRecord:
        """See `Store`."""
        row = self._row(
            f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE campaign = ? AND number = ?",
            campaign,
            number,
        )
        if row is None:
            self.campaign(campaign)
            raise StoreError(f"campaign {campaign} has no round {number}")
        return _round_record(row)

    def rounds(self, campaign: str) -> tuple[RoundRecord, ...]:
        """See `Store`."""
        self.campaign(campaign)
        rows = self._rows(
            f"SELECT {_ROUND_COLUMNS} FROM rounds WHERE campaign = ? ORDER BY number", campaign
        )
        return tuple(_round_record(row) for row in rows)

    def round_summaries(self, campaign: str, since: int = 0) -> tuple[RoundSummary, ...]:
        """See `Store`."""
        rows = self._rows(
            "SELECT number, kind, state, asked, wanted, accepted, revision FROM rounds "
            "WHERE campaign = ? AND revision > ? ORDER BY number",
            campaign,
            since,
        )
        return tuple(RoundSummary(*row) for row in rows)

    def reports(self, campaign: str, number: int) -> tuple[dict[str, Any], ...]:
        """See `Store`."""
        self.campaign(campaign)
        rows = self._rows(
            "SELECT fields FROM reports WHERE campaign = ? AND round = ? ORDER BY device",
            campaign,
            number,
        )
        return tuple(json.loads(text) for (text,) in rows)

    def close(self) -> None:
        """See `Store`."""
        with self._lock:
            self._db.close()
