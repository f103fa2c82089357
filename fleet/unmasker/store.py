"""What an unmasker remembers: who is enrolled, and which sets it has answered. SQLite.

WAL with ``synchronous = FULL``: a transaction that has returned is on disk. A set and its members
are one transaction, and a member has the key (campaign, round, device): so whoever asks, whatever
is killed, no device is in two sets of a round. Several processes may use one file.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet.errors import KeysError, StoreError
from fleet.protocol.keys import Enrolment
from fleet.protocol.mask_requests import MaskRequest

SCHEMA_VERSION = 1
BUSY_SECONDS = 10.0
_SCHEMA = f"""
BEGIN;
CREATE TABLE devices (
    device TEXT PRIMARY KEY, exchange_key BLOB NOT NULL, signing_key BLOB NOT NULL,
    enrolled REAL NOT NULL, revoked REAL
) WITHOUT ROWID;
CREATE TABLE sets (
    id INTEGER PRIMARY KEY, campaign BLOB NOT NULL, round INTEGER NOT NULL, digest BLOB NOT NULL,
    plan BLOB NOT NULL, devices INTEGER NOT NULL, at REAL NOT NULL
);
CREATE TABLE members (
    campaign BLOB NOT NULL, round INTEGER NOT NULL, device TEXT NOT NULL,
    set_id INTEGER NOT NULL REFERENCES sets,
    PRIMARY KEY (campaign, round, device)
) WITHOUT ROWID;
CREATE INDEX members_of_a_set ON members (set_id);
CREATE TABLE refusals (kind TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tokens (hash TEXT PRIMARY KEY, issued REAL NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


@dataclass(frozen=True)
class EnrolledDevice:
    """A device whose keys the unmasker has."""

    device: str
    exchange_key: bytes
    enrolled: float
    """Seconds since 1970; so is"""
    revoked: float | None


@dataclass(frozen=True)
class AnsweredSet:
    """A set whose masks were told."""

    campaign: bytes
    round: int
    plan: bytes
    devices: tuple[str, ...]
    at: float
    """When it was recorded, in seconds since 1970."""


class UnmaskerStore:
    """One SQLite file, or memory; any thread."""

    def __init__(self, path: Path | None = None) -> None:
        """Open ``path``, or make it; None: in memory, for what ends with the process.

        Raises: StoreError where that can't be.
        """
        self._name = str(path or ":memory:")
        self._lock = threading.RLock()
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                self._name, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            with self._raised():
                self._make_schema()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"{self._name}: can't be used as an unmasker's store ({error}); "
                "check the path, its rights and the free space"
            ) from None

    def _make_schema(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            self._db.executescript(_SCHEMA)
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"{self._name}: is of version {version}, this unmasker reads {SCHEMA_VERSION}"
            )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _raised(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(
                f"{self._name}: can't be used ({error}); check its rights and the free space"
            ) from None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is done inside, on disk when it ends; or nothing after an exception.

        Nobody else writes meanwhile, of this process or of another.
        """
        with self._lock, self._raised():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._raised():
            return self._db.execute(query, values).fetchall()

    # ---- sets -------------------------------------------------------------------------

    def recorded(self, request: MaskRequest) -> dict[str, bytes]:
        """Of the request's devices that were in a set of its campaign and round, its digest."""
        devices = [one.device for one in request.members]
        rows = self._rows(
            "SELECT device, digest FROM members JOIN sets ON sets.id = set_id "
            f"WHERE members.campaign = ? AND members.round = ? AND device IN {_places(devices)}",
            (request.campaign, request.round, *devices),
        )
        return dict(rows)

    def record(self, request: MaskRequest, now: float) -> None:
        """A set with its members, inside of a transaction; StoreError where one is in a set."""
        with self._raised():
            cursor = self._db.execute(
                "INSERT INTO sets (campaign, round, digest, plan, devices, at) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (
                    request.campaign,
                    request.round,
                    request.digest(),
                    request.plan,
                    len(request.members),
                    now,
                ),
            )
            self._db.executemany(
                "INSERT INTO members VALUES (?, ?, ?, ?)",
                [
                    (request.campaign, request.round, one.device, cursor.lastrowid)
                    for one in request.members
                ],
            )

    def sets(self, most: int = 1000) -> list[AnsweredSet]:
        """The newest sets, in the order in which they were recorded."""
        with self._lock, self._raised():
            rows = self._db.execute(
                "SELECT id, campaign, round, plan, at FROM sets ORDER BY id DESC LIMIT ?", (most,)
            ).fetchall()
            return [
                AnsweredSet(campaign, number, plan, self._members(set_id), at)
                for set_id, campaign, number, plan, at in reversed(rows)
            ]

    def _members(self, set_id: int) -> tuple[str, ...]:
        query = "SELECT device FROM members WHERE set_id = ? ORDER BY device"
        return tuple(device for (device,) in self._db.execute(query, (set_id,)))

    def count_sets(self) -> int:
        """How many there are."""
        ((count,),) = self._rows("SELECT count(*) FROM sets")
        return int(count)

    # ---- devices ----------------------------------------------------------------------

    def keys(self, devices: Sequence[str], *, revoked: bool = False) -> dict[str, bytes]:
        """Exchange keys of those of the devices that are enrolled; ``revoked``: of these, too."""
        good = "" if revoked else " AND revoked IS NULL"
        rows = self._rows(
            f"SELECT device, exchange_key FROM devices WHERE device IN {_places(devices)}{good}",
            devices,
        )
        return dict(rows)

    def count_devices(self) -> int:
        """How many are enrolled and not revoked."""
        ((count,),) = self._rows("SELECT count(*) FROM devices WHERE revoked IS NULL")
        return int(count)

    def devices(self) -> list[EnrolledDevice]:
        """All that were enrolled, in order of their names."""
        rows = self._rows(
            "SELECT device, exchange_key, enrolled, revoked FROM devices ORDER BY device"
        )
        return [EnrolledDevice(*row) for row in rows]

    def enrol(
        self, enrolments: Iterable[Enrolment], fleet: str, now: float, *, replace: bool = False
    ) -> list[str]:
        """Take over devices' keys, all or none; returns who is new or has other keys now.

        Raises: KeysError for a device of another fleet, one that hasn't signed its enrolment, and,
            unless ``replace``, one that is enrolled with other keys or was revoked.
        """
        changed: list[str] = []
        with self.transaction():
            for one in enrolments:
                if one.fleet != fleet:
                    raise KeysError(f"device {one.device} is of fleet {one.fleet}, not of {fleet}")
                if not one.is_right:
                    raise KeysError(f"device {one.device} hasn't signed its enrolment")
                known = self._db.execute(
                    "SELECT exchange_key, signing_key, revoked FROM devices WHERE device = ?",
                    (one.device,),
                ).fetchone()
                if known == (one.exchange_key, one.signing_key, None):
                    continue
                if known is not None and not replace:
                    what = "has other keys" if known[2] is None else "was revoked"
                    raise KeysError(
                        f"device {one.device} {what} here; --replace takes the new ones over, once "
                        "you know whose they are"
                    )
                self._db.execute(
                    "INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?, NULL)",
                    (one.device, one.exchange_key, one.signing_key, now),
                )
                changed.append(one.device)
        return changed

    def revoke(self, device: str, now: float) -> None:
        """Count a device no more; KeysError where none of this name is enrolled."""
        with self.transaction():
            changed = self._db.execute(
                "UPDATE devices SET revoked = coalesce(revoked, ?) WHERE device = ?", (now, device)
            )
            if not changed.rowcount:
                raise KeysError(f"no device {device} is enrolled here")

    # ---- refusals and tokens ----------------------------------------------------------

    def count_refusal(self, kind: str) -> None:
        """One more of this kind."""
        with self.transaction():
            self._db.execute(
                "INSERT INTO refusals VALUES (?, 1) ON CONFLICT (kind) DO UPDATE SET n = n + 1",
                (kind,),
            )

    def refusals(self) -> Mapping[str, int]:
        """How many of each kind."""
        return dict(self._rows("SELECT kind, n FROM refusals ORDER BY kind"))

    def set_token(self, token_hash: str, now: float) -> None:
        """Whoever has the token with this hash may ask, and nobody else any more."""
        with self.transaction():
            self._db.execute("DELETE FROM tokens")
            self._db.execute("INSERT INTO tokens VALUES (?, ?)", (token_hash, now))

    def token_hash(self) -> str:
        """Of whoever may ask; empty where nobody may."""
        rows = self._rows("SELECT hash FROM tokens")
        return str(rows[0][0]) if rows else ""


def _places(values: Sequence[object]) -> str:
    return f"({', '.join('?' * len(values))})"
