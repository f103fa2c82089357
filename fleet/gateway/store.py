"""The gateway's round store: SQLite, one transaction per batch of events.

WAL with ``synchronous = FULL``: a transaction that has returned is on disk, so a delta that
was acknowledged survives a power cut. A delta's report has the key (round, device); folding
it into the sum and writing that report is one transaction, so it counts once or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fleet.errors import StoreError
from fleet.gateway import actions as act
from fleet.gateway.actions import StoreAction
from fleet.gateway.rounds import BlobSize, PartialDelta, Round, RoundKey, RoundSpec, RoundState
from fleet.protocol import Announce, Delta, Status

SCHEMA_VERSION = 1
KEPT_EXPLANATIONS = 1000

_SCHEMA = """
CREATE TABLE devices (
    device TEXT PRIMARY KEY, announce BLOB, status BLOB, last_seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE blobs (
    sha256 BLOB PRIMARY KEY, data BLOB NOT NULL, chunk_bytes INTEGER NOT NULL,
    published_until REAL NOT NULL
);
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY, campaign BLOB NOT NULL, round INTEGER NOT NULL,
    state TEXT NOT NULL, spec BLOB NOT NULL, started REAL NOT NULL, deadline REAL NOT NULL,
    ended REAL, UNIQUE (campaign, round)
);
CREATE TABLE chunks (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    device TEXT NOT NULL, chunk INTEGER NOT NULL, message BLOB NOT NULL,
    PRIMARY KEY (round_id, device, chunk)
) WITHOUT ROWID;
CREATE TABLE accepted (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    device TEXT NOT NULL, plan BLOB NOT NULL, header BLOB NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (round_id, device)
) WITHOUT ROWID;
CREATE TABLE declined (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    device TEXT NOT NULL, reason INTEGER NOT NULL,
    PRIMARY KEY (round_id, device)
) WITHOUT ROWID;
CREATE TABLE sums (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    plan BLOB NOT NULL, total BLOB NOT NULL, weight INTEGER NOT NULL, devices INTEGER NOT NULL,
    PRIMARY KEY (round_id, plan)
);
CREATE TABLE counters (
    round_id INTEGER NOT NULL, kind TEXT NOT NULL, n INTEGER NOT NULL,
    PRIMARY KEY (round_id, kind)
) WITHOUT ROWID;
CREATE TABLE explanations (
    id INTEGER PRIMARY KEY, round_id INTEGER NOT NULL, at REAL NOT NULL,
    device TEXT NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL
);
"""

# round_id of what belongs to no round.
_NO_ROUND = 0


class RoundStore:
    """One SQLite file, used by one thread of one gateway process."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, or make it; StoreError where that can't be."""
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                self._db.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            elif version != SCHEMA_VERSION:
                raise StoreError(
                    f"{path}: has version {version}, this gateway reads {SCHEMA_VERSION}; "
                    f"run the version that wrote it, or move the file away"
                )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{path}: can't be used as round store ({error}); "
                f"check the path, its rights and the free space"
            ) from None
        self._round_ids: dict[RoundKey, int] = {
            RoundKey(campaign, number): round_id
            for round_id, campaign, number in self._db.execute(
                "SELECT id, campaign, round FROM rounds"
            )
        }

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done inside, on disk when it ends; or nothing after an exception."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: can't be written ({error}); check its rights and the free space"
            ) from None

    # ---- writing (inside of a transaction) -------------------------------------------

    def apply(self, action: StoreAction) -> bytes | None:
        """Do what ``action`` says; for Assemble, return the chunks laid end to end."""
        run = self._db.execute
        match action:
            case act.SaveAnnounce(announce, now):
                run(
                    "INSERT INTO devices VALUES (?, ?, NULL, ?) ON CONFLICT (device) "
                    "DO UPDATE SET announce = excluded.announce, last_seen = excluded.last_seen",
                    (announce.device, announce.encode(), now),
                )
            case act.SaveStatus(status, now):
                run(
                    "INSERT INTO devices VALUES (?, NULL, ?, ?) ON CONFLICT (device) "
                    "DO UPDATE SET status = excluded.status, last_seen = excluded.last_seen",
                    (status.device, status.encode(), now),
                )
            case act.SaveBlob(blob, until):
                run(
                    "INSERT OR IGNORE INTO blobs VALUES (?, ?, ?, ?)",
                    (bytes.fromhex(blob.sha256), blob.data, blob.chunk_bytes, until),
                )
            case act.KeepBlobUntil(weights, until):
                run("UPDATE blobs SET published_until = ? WHERE sha256 = ?", (until, weights))
            case act.SaveRound(spec, started, deadline):
                self._save_round(spec, started, deadline)
            case act.SetState(key, state, now):
                round_id = self._round_ids[key]
                run(
                    "UPDATE rounds SET state = ?, ended = ? WHERE id = ?",
                    (str(state), now, round_id),
                )
                run("DELETE FROM chunks WHERE round_id = ?", (round_id,))
            case act.ForgetRound(key):
                self._forget(self._round_ids.pop(key))
            case act.ForgetBlob(weights):
                run("DELETE FROM blobs WHERE sha256 = ?", (weights,))
            case act.SaveChunk(key, device, delta):
                run(
                    "INSERT INTO chunks VALUES (?, ?, ?, ?)",
                    (self._round_ids[key], device, delta.chunk, delta.encode()),
                )
            case act.DropChunks(key, device):
                run(
                    "DELETE FROM chunks WHERE round_id = ? AND device = ?",
                    (self._round_ids[key], device),
                )
            case act.Assemble(key, device):
                rows = run(
                    "SELECT message FROM chunks WHERE round_id = ? AND device = ? ORDER BY chunk",
                    (self._round_ids[key], device),
                )
                return b"".join(Delta.decode(message).coded for (message,) in rows)
            case act.Accept():
                self._accept(action)
            case act.SaveDecline(key, device, None):
                run(
                    "DELETE FROM declined WHERE round_id = ? AND device = ?",
                    (self._round_ids[key], device),
                )
            case act.SaveDecline(key, device, reason):
                run(
                    "INSERT OR REPLACE INTO declined VALUES (?, ?, ?)",
                    (self._round_ids[key], device, reason),
                )
            case act.Count():
                self._count(action)
        return None

    def _save_round(self, spec: RoundSpec, started: float, deadline: float) -> None:
        cursor = self._db.execute(
            "INSERT INTO rounds (campaign, round, state, spec, started, deadline) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (*spec.key, str(RoundState.RUNNING), spec.encode(), started, deadline),
        )
        round_id = cursor.lastrowid
        assert round_id is not None
        self._round_ids[spec.key] = round_id
        for plan, values in spec.plans.items():
            self._db.execute(
                "INSERT INTO sums VALUES (?, ?, ?, 0, 0)",
                (round_id, plan, np.zeros(values, "<i8").tobytes()),
            )

    def _accept(self, accept: act.Accept) -> None:
        round_id = self._round_ids[accept.key]
        # The primary key refuses a second delta of one device in one round.
        self._db.execute(
            "INSERT INTO accepted VALUES (?, ?, ?, ?, ?)",
            (round_id, accept.device, accept.plan, accept.header.encode(), accept.seconds),
        )
        self._db.execute(
            "DELETE FROM declined WHERE round_id = ? AND device = ?", (round_id, accept.device)
        )
        weight = accept.header.train_samples
        if not weight:
            return  # scores only: no change, no say in the average
        row = self._db.execute(
            "SELECT total FROM sums WHERE round_id = ? AND plan = ?", (round_id, accept.plan)
        ).fetchone()
        total = np.frombuffer(row[0], "<i8") + accept.values.astype(np.int64) * weight
        self._db.execute(
            "UPDATE sums SET total = ?, weight = weight + ?, devices = devices + 1 "
            "WHERE round_id = ? AND plan = ?",
            (total.astype("<i8").tobytes(), weight, round_id, accept.plan),
        )

    def _count(self, count: act.Count) -> None:
        round_id = self._round_ids[count.key] if count.key else _NO_ROUND
        self._db.execute(
            "INSERT INTO counters VALUES (?, ?, 1) "
            "ON CONFLICT (round_id, kind) DO UPDATE SET n = n + 1",
            (round_id, count.kind),
        )
        cursor = self._db.execute(
            "INSERT INTO explanations (round_id, at, device, kind, detail) VALUES (?, ?, ?, ?, ?)",
            (round_id, count.now, count.device, count.kind, count.detail[:200]),
        )
        last = cursor.lastrowid or 0
        self._db.execute("DELETE FROM explanations WHERE id <= ?", (last - KEPT_EXPLANATIONS,))

    def _forget(self, round_id: int) -> None:
        self._db.execute("DELETE FROM counters WHERE round_id = ?", (round_id,))
        self._db.execute("DELETE FROM explanations WHERE round_id = ?", (round_id,))
        self._db.execute("DELETE FROM rounds WHERE id = ?", (round_id,))

    # ---- reading ---------------------------------------------------------------------

    def devices(self) -> tuple[dict[str, Announce], dict[str, Status]]:
        """What each device last said it is, and what it was doing."""
        announces, statuses = {}, {}
        for device, announce, status in self._db.execute(
            "SELECT device, announce, status FROM devices ORDER BY device"
        ):
            if announce is not None:
                announces[device] = Announce.decode(announce)
            if status is not None:
                statuses[device] = Status.decode(status)
        return announces, statuses

    def last_seen(self) -> dict[str, float]:
        """When each device was last heard of, in seconds since 1970."""
        return dict(self._db.execute("SELECT device, last_seen FROM devices"))

    def rounds(self) -> dict[RoundKey, Round]:
        """All rounds as they stand, in the order in which they were started."""
        found: dict[RoundKey, Round] = {}
        by_id: dict[int, Round] = {}
        for round_id, spec, state, deadline in self._db.execute(
            "SELECT id, spec, state, deadline FROM rounds ORDER BY id"
        ):
            entry = Round(RoundSpec.decode(spec), deadline, RoundState(state))
            found[entry.spec.key] = by_id[round_id] = entry
        for round_id, device in self._db.execute("SELECT round_id, device FROM accepted"):
            by_id[round_id].accepted.add(device)
        for round_id, device, reason in self._db.execute("SELECT * FROM declined"):
            by_id[round_id].declined[device] = reason
        for round_id, device, message in self._db.execute(
            "SELECT round_id, device, message FROM chunks"
        ):
            delta = Delta.decode(message)
            partial = by_id[round_id].partial.setdefault(
                device, PartialDelta(replace(delta, chunk=0, coded=b""))
            )
            partial.received.add(delta.chunk)
        return found

    def blobs(self) -> dict[bytes, tuple[BlobSize, float]]:
        """Sizes of the weights that are kept, and until when the broker retains them."""
        return {
            sha256: (BlobSize(size, chunk_bytes), until)
            for sha256, size, chunk_bytes, until in self._db.execute(
                "SELECT sha256, length(data), chunk_bytes, published_until FROM blobs"
            )
        }

    def blob_data(self, weights: bytes) -> bytes:
        """The bytes of a version of the weights."""
        row = self._db.execute("SELECT data FROM blobs WHERE sha256 = ?", (weights,)).fetchone()
        return bytes(row[0])

    def sums(self, key: RoundKey) -> dict[str, dict[str, Any]]:
        """Per plan id (hex): ``values`` (int64, little endian), ``weight``, ``devices``."""
        return {
            plan.hex(): {"values": total, "weight": weight, "devices": devices}
            for plan, total, weight, devices in self._db.execute(
                "SELECT plan, total, weight, devices FROM sums WHERE round_id = ?",
                (self._round_ids[key],),
            )
        }

    def reports(self, key: RoundKey) -> list[tuple[str, bytes, Delta, float]]:
        """Device, plan, header of the delta and seconds since the start, per accepted delta."""
        return [
            (device, plan, Delta.decode(header), seconds)
            for device, plan, header, seconds in self._db.execute(
                "SELECT device, plan, header, seconds FROM accepted "
                "WHERE round_id = ? ORDER BY device",
                (self._round_ids[key],),
            )
        ]

    def counters(self, key: RoundKey | None) -> dict[str, int]:
        """How many deltas weren't accepted, by kind; None for those of no known round."""
        round_id = self._round_ids[key] if key else _NO_ROUND
        return dict(
            self._db.execute("SELECT kind, n FROM counters WHERE round_id = ?", (round_id,))
        )

    def explanations(self, key: RoundKey | None, limit: int = 100) -> list[dict[str, Any]]:
        """The newest deltas that weren't accepted, oldest first: device, kind, detail, at."""
        round_id = self._round_ids[key] if key else _NO_ROUND
        rows = self._db.execute(
            "SELECT device, kind, detail, at FROM explanations "
            "WHERE round_id = ? ORDER BY id DESC LIMIT ?",
            (round_id, limit),
        ).fetchall()
        names = ("device", "kind", "detail", "at")
        return [dict(zip(names, row, strict=True)) for row in reversed(rows)]
