"""The gateway's round store: SQLite, one transaction per batch of events.

WAL with ``synchronous = FULL``: a transaction that has returned is on disk, so a delta for which
there is a receipt survives a power cut. Its report has the key (round, device); adding it up and
writing that report is one transaction, so it counts once or not at all.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fleet.errors import StoreError
from fleet.gateway import actions as act
from fleet.gateway import sums
from fleet.gateway.actions import StoreAction
from fleet.gateway.devices import StoredDevice
from fleet.gateway.instant import Instant
from fleet.gateway.rounds import Report, Round, RoundKey, RoundSpec, RoundState, Tally
from fleet.protocol import Announce

SCHEMA_VERSION = 4
KEPT_EXPLANATIONS = 1000

# `parts`: of folds by arrival, the last part that was closed.
_SCHEMA = f"""
CREATE TABLE devices (
    device TEXT PRIMARY KEY, announce BLOB NOT NULL, lease INTEGER NOT NULL,
    last_seen REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE blobs (sha256 BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY, campaign BLOB NOT NULL, round INTEGER NOT NULL,
    state TEXT NOT NULL, spec BLOB NOT NULL, content BLOB NOT NULL, refused TEXT NOT NULL,
    started REAL NOT NULL, deadline REAL NOT NULL, ended REAL, UNIQUE (campaign, round)
);
CREATE TABLE accepted (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE, number INTEGER NOT NULL,
    device TEXT NOT NULL, plan BLOB NOT NULL, coded_crc32 INTEGER NOT NULL,
    train_samples INTEGER NOT NULL, train_steps INTEGER NOT NULL,
    held_out_samples INTEGER NOT NULL,
    correct_before INTEGER NOT NULL, correct_after INTEGER NOT NULL,
    loss_before_thousandths INTEGER NOT NULL, loss_after_thousandths INTEGER NOT NULL,
    correct_local INTEGER NOT NULL, kept INTEGER NOT NULL,
    coded_bytes INTEGER NOT NULL, payload_bytes INTEGER NOT NULL, seconds REAL NOT NULL,
    nonce BLOB NOT NULL, seals BLOB NOT NULL,
    PRIMARY KEY (round_id, number), UNIQUE (round_id, device)
) WITHOUT ROWID;
CREATE TABLE declined (
    round_id INTEGER NOT NULL REFERENCES rounds ON DELETE CASCADE,
    device TEXT NOT NULL, reason INTEGER NOT NULL,
    PRIMARY KEY (round_id, device)
) WITHOUT ROWID;
{sums.SCHEMA}
CREATE TABLE parts (
    round_id INTEGER PRIMARY KEY REFERENCES rounds ON DELETE CASCADE,
    part INTEGER NOT NULL, through INTEGER NOT NULL
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

# Chunks of deltas that aren't complete: on disk, since many devices send at once, but in a
# temporary table, since a device that gets no receipt sends again.
_CHUNKS = """
CREATE TEMP TABLE chunks (
    round_id INTEGER NOT NULL, device TEXT NOT NULL, chunk INTEGER NOT NULL, coded BLOB NOT NULL,
    PRIMARY KEY (round_id, device, chunk)
) WITHOUT ROWID;
"""

# round_id of what belongs to no round.
_NO_ROUND = 0


class Stored(NamedTuple):
    """All that a gateway goes on from."""

    devices: dict[str, StoredDevice]
    rounds: dict[RoundKey, Round]
    blobs: dict[bytes, int]
    strays: dict[str, int]


class RoundStore:
    """One SQLite file, used by one thread of one gateway process."""

    def __init__(self, path: Path, *, survives_power_cuts: bool = True) -> None:
        """Open ``path``, or make it; StoreError where that can't be.

        Where it needn't survive more than the process, as in virtual time, it waits for no disk.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None, timeout=10.0)
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA_VERSION):
                raise StoreError(
                    f"{path}: is of version {version}, this gateway reads {SCHEMA_VERSION}; let "
                    "the version that wrote it finish its rounds, then move the file away: a new "
                    "one is made, devices announce themselves again"
                )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if survives_power_cuts else 'OFF'}")
            self._db.execute("PRAGMA foreign_keys = ON")
            if version != SCHEMA_VERSION:
                self._db.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
                )
            self._db.executescript(_CHUNKS)
            self._round_ids: dict[RoundKey, int] = {
                RoundKey(campaign, number): round_id
                for round_id, campaign, number in self._db.execute(
                    "SELECT id, campaign, round FROM rounds"
                )
            }
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{path}: can't be used as round store ({error}); "
                f"check the path, its rights and the free space"
            ) from None
        self._sums = sums.Sums(self._db)

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
                self._sums.write()
                self._db.execute("COMMIT")
            except BaseException:
                self._sums.forget_memory()
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: can't be written ({error}); check its rights and the free space"
            ) from None

    # ---- writing (inside of a transaction) -------------------------------------------

    def apply(self, action: StoreAction) -> bytes | None:
        """Do what ``action`` says; for Assemble, return the chunks laid end to end."""
        run, many = self._db.execute, self._db.executemany
        match action:
            case act.Accept():
                self._accept(action)
            case act.SaveDevice(device, announce, lease, last_seen):
                run(
                    "INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)",
                    (device, announce.encode(), lease, last_seen),
                )
            case act.SaveSeen(seen):
                many(
                    "UPDATE devices SET last_seen = ? WHERE device = ?",
                    [(at, device) for device, at in seen.items()],
                )
            case act.SaveLeases(leases):
                many(
                    "UPDATE devices SET lease = ? WHERE device = ?",
                    [(lease, device) for device, lease in leases.items()],
                )
            case act.SaveBlob(weights, data):
                run("INSERT OR IGNORE INTO blobs VALUES (?, ?)", (weights, data))
            case act.SaveRound():
                self._save_round(action)
            case act.SaveDeadline(key, deadline):
                run("UPDATE rounds SET deadline = ? WHERE id = ?", (deadline, self._round_ids[key]))
            case act.SetState(key, state, now):
                round_id = self._round_ids[key]
                run(
                    "UPDATE rounds SET state = ?, ended = ? WHERE id = ?",
                    (str(state), now, round_id),
                )
                run("DELETE FROM chunks WHERE round_id = ?", (round_id,))
                self._sums.end(round_id)
            case act.ForgetRound(key):
                self._forget(self._round_ids.pop(key))
            case act.ForgetBlob(weights):
                run("DELETE FROM blobs WHERE sha256 = ?", (weights,))
            case act.KeepChunk(key, device, chunk, coded):
                run(
                    "INSERT INTO chunks VALUES (?, ?, ?, ?)",
                    (self._round_ids[key], device, chunk, coded),
                )
            case act.DropChunks(key, device):
                run(
                    "DELETE FROM chunks WHERE round_id = ? AND device = ?",
                    (self._round_ids[key], device),
                )
            case act.Assemble(key, device):
                rows = run(
                    "SELECT coded FROM chunks WHERE round_id = ? AND device = ? ORDER BY chunk",
                    (self._round_ids[key], device),
                )
                return b"".join(coded for (coded,) in rows)
            case act.ClosePart(key, part, through):
                round_id = self._round_ids[key]
                run("INSERT OR REPLACE INTO parts VALUES (?, ?, ?)", (round_id, part, through))
                self._sums.follow(round_id, part)
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

    def _save_round(self, save: act.SaveRound) -> None:
        spec = save.spec
        cursor = self._db.execute(
            "INSERT INTO rounds "
            "(campaign, round, state, spec, content, refused, started, deadline) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *spec.key,
                str(RoundState.RUNNING),
                spec.encode(),
                save.content,
                json.dumps(dict(save.refused)),
                save.started,
                save.deadline,
            ),
        )
        round_id = cursor.lastrowid
        assert round_id is not None
        self._round_ids[spec.key] = round_id
        for plan, of in spec.plans.items():
            self._sums.begin(round_id, plan, of.values, spec.form, range(spec.fold.parts))

    def _accept(self, accept: act.Accept) -> None:
        round_id, report = self._round_ids[accept.key], accept.report
        # The table refuses a second delta of one device in one round.
        self._db.execute(
            f"INSERT INTO accepted VALUES (?, ?{', ?' * len(report)})",
            (round_id, accept.number, *report),
        )
        self._db.execute(
            "DELETE FROM declined WHERE round_id = ? AND device = ?", (round_id, report.device)
        )
        if accept.weight:
            self._sums.add(
                round_id,
                report.plan,
                accept.part,
                report.device,
                accept.weight,
                accept.values,
                accept.coded,
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

    def load(self, now: Instant) -> Stored:
        """What a gateway goes on from, in one look; StoreError where the file is damaged."""
        try:
            return Stored(
                {
                    device: StoredDevice(Announce.decode(announce), lease, last_seen)
                    for device, announce, lease, last_seen in self._db.execute(
                        "SELECT device, announce, lease, last_seen FROM devices ORDER BY device"
                    )
                },
                self._rounds(now),
                dict(self._db.execute("SELECT sha256, length(data) FROM blobs")),
                self._counters(_NO_ROUND),
            )
        except sqlite3.Error as error:
            raise StoreError(
                f"{self.path}: can't be read ({error}); put a copy back or move the file away"
            ) from None

    def _rounds(self, now: Instant) -> dict[RoundKey, Round]:
        """All rounds as they stand, in the order in which they were started."""
        found: dict[RoundKey, Round] = {}
        rows = self._db.execute(
            "SELECT id, spec, content, refused, state, deadline FROM rounds ORDER BY id"
        ).fetchall()
        for round_id, encoded, content, refused, state, deadline in rows:
            spec = RoundSpec.decode(encoded)
            # A wall clock that was set back while nothing ran can't give it more than it had.
            left = min(max(0.0, deadline - now.wall), spec.seconds)
            part, through = self._closed_part(round_id)
            one = Round(
                spec,
                content,
                now.monotonic + left,
                json.loads(refused),
                RoundState(state),
                counters=Counter(self._counters(round_id)),
                past=self._tally(round_id),
                part=part + 1,
                closed_through=through,
            )
            if one.open:
                for name, column, into in (
                    ("accepted", "coded_crc32", one.accepted),
                    ("declined", "reason", one.declined),
                ):
                    query = f"SELECT device, {column} FROM {name} WHERE round_id = ?"
                    into.update(self._db.execute(query, (round_id,)))
            found[one.key] = one
        return found

    def _closed_part(self, round_id: int) -> tuple[int, int]:
        """The last part that was closed, and the number of the last delta in it."""
        row = self._db.execute(
            "SELECT part, through FROM parts WHERE round_id = ?", (round_id,)
        ).fetchone()
        return row or (-1, 0)

    def _tally(self, round_id: int) -> Tally:
        (accepted,) = self._db.execute(
            "SELECT count(*) FROM accepted WHERE round_id = ?", (round_id,)
        ).fetchone()
        declined = self._db.execute(
            "SELECT reason, count(*) FROM declined WHERE round_id = ? GROUP BY reason", (round_id,)
        )
        return Tally(accepted, dict(declined))

    def _counters(self, round_id: int) -> dict[str, int]:
        return dict(
            self._db.execute("SELECT kind, n FROM counters WHERE round_id = ?", (round_id,))
        )

    def counted(self, key: RoundKey, device: str) -> int | None:
        """See :class:`fleet.gateway.round_logic.Archive`."""
        row = self._db.execute(
            "SELECT coded_crc32 FROM accepted WHERE round_id = ? AND device = ?",
            (self._round_ids[key], device),
        ).fetchone()
        return None if row is None else int(row[0])

    def cohort(self, key: RoundKey) -> Collection[str]:
        """See :class:`fleet.gateway.round_logic.Archive`."""
        (spec,) = self._db.execute(
            "SELECT spec FROM rounds WHERE id = ?", (self._round_ids[key],)
        ).fetchone()
        return RoundSpec.decode(spec).tasks.keys()

    def blob_data(self, weights: bytes) -> bytes:
        """The bytes of a version of the weights."""
        row = self._db.execute("SELECT data FROM blobs WHERE sha256 = ?", (weights,)).fetchone()
        return bytes(row[0])

    def sums(self, key: RoundKey, part: int | None = None) -> dict[str, list[dict[str, Any]]]:
        """Of a closed round, per plan id (hex): ``values`` (int64, little endian) and so on.

        Of one part alone, where it is named, as it stands.
        """
        round_id = self._round_ids[key]
        return self._sums.of(round_id) if part is None else self._sums.of_part(round_id, part)

    def reports(self, key: RoundKey, after: int, limit: int) -> list[Report]:
        """Accepted deltas in the order in which they came, from number ``after`` + 1 on."""
        rows = self._db.execute(
            "SELECT * FROM accepted WHERE round_id = ? AND number > ? ORDER BY number LIMIT ?",
            (self._round_ids[key], after, limit),
        )
        return [Report(*row[2:]) for row in rows]

    def declined(self, key: RoundKey, limit: int) -> dict[str, int]:
        """Devices that declined or failed, with their reasons; some where there are more."""
        rows = self._db.execute(
            "SELECT device, reason FROM declined WHERE round_id = ? ORDER BY device LIMIT ?",
            (self._round_ids[key], limit),
        )
        return dict(rows.fetchall())

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
