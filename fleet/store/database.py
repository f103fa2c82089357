"""The database of a store: an SQLite file, memory, or PostgreSQL; its tables and transactions."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import StaticPool

from fleet.clock import Clock, SystemClock
from fleet.errors import StoreAwayError, StoreError
from fleet.store.base import SupersededError
from fleet.store.tables import restores


def sqlite_url(path: Path) -> str:
    """The URL of a store in this file."""
    return f"sqlite:///{path.resolve()}"


class _Tables:
    """An empty database in memory, for this process."""

    lock = threading.Lock()
    made: sqlite3.Connection | None = None


class Database:
    """What all parts of a store share."""

    def __init__(
        self,
        url: str | None = None,
        clock: Clock | None = None,
        *,
        survives_power_cuts: bool = True,
        migrates: bool = True,
    ) -> None:
        """Open the database at `url`, and bring its tables up to date; memory without one.

        `sqlite:///FILE` or `postgresql+psycopg://…`. Where a file needn't survive more than the
        process, as in virtual time, it waits for no disk. One that isn't up to date is refused
        unless this `migrates`. Raises `StoreError` where it can't be used.
        """
        self.clock = clock or SystemClock()
        self.revision = ""
        self._mine = threading.local()
        try:
            parsed = sa.make_url(url or "sqlite://")
            self._name = parsed.render_as_string(hide_password=True)
            self._engine = open_engine(parsed, survives_power_cuts)
            # In memory there is one connection, and one transaction at a time on it.
            self._alone = threading.RLock() if self._is_in_memory else contextlib.nullcontext()
        except (sa.exc.ArgumentError, ImportError, ValueError) as error:
            # It may hold a password, and what Python says of a wrong number repeats it.
            what = "its port isn't a number" if isinstance(error, ValueError) else str(error)
            raise StoreError(
                f"the store's address can't be used ({what}); "
                "use sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE"
            ) from None
        if self._is_in_memory:
            self._copy_tables()
        else:
            with self._transaction(writes=True) as connection:
                self.revision = self._bring_up_to_date(connection, migrates)

    def _copy_tables(self) -> None:
        """Migrations take a tenth of a second; a copy of what they have made once takes none."""
        mine: Any = self._engine.raw_connection().driver_connection
        with _Tables.lock:
            if _Tables.made is None:
                with self.writing() as connection:
                    self._bring_up_to_date(connection)
                _Tables.made = sqlite3.connect(":memory:", check_same_thread=False)
                mine.backup(_Tables.made)
            else:
                _Tables.made.backup(mine)

    @property
    def _is_in_memory(self) -> bool:
        return isinstance(self._engine.pool, StaticPool)

    def _bring_up_to_date(self, connection: sa.Connection, migrates: bool = True) -> str:
        """All steps that it lacks or none, within the transaction; gives the revision then."""
        with as_file(files("fleet.store") / "migrations") as folder:
            config = Config()
            config.set_main_option("script_location", str(folder))
            config.attributes["connection"] = connection
            known = set(sa.inspect(connection).get_table_names())
            if "campaigns" in known and "alembic_version" not in known:
                raise StoreError(
                    f"{self._name} is a store of a program older than its migrations: "
                    "finish its campaigns with that one, and begin with another database"
                )
            if connection.dialect.name == "postgresql":
                # Two services that start at once make the tables once.
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(0x74696E79)))
            head = ScriptDirectory.from_config(config).get_current_head() or ""
            found = MigrationContext.configure(connection).get_current_revision()
            if not migrates and found != head:
                raise StoreError(
                    f"{self._name} is of revision {found or 'none'}, and this version works with "
                    f"{head}: use the version that its service has"
                )
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise StoreError(
                    f"{self._name} was written by a newer version of this program ({error}): "
                    "use that one, or another database"
                ) from None
            return head

    # Transactions

    @contextlib.contextmanager
    def _transaction(self, **options: Any) -> Iterator[sa.Connection]:
        outer: sa.Connection | None = getattr(self._mine, "connection", None)
        if outer is not None:
            yield outer
            return
        try:
            with (
                self._alone,
                self._engine.connect().execution_options(**options) as connection,
                connection.begin(),
            ):
                self._mine.connection = connection if options.get("writes") else None
                try:
                    yield connection
                finally:
                    self._mine.connection = None
        except (sa.exc.SQLAlchemyError, sqlite3.Error) as error:
            cause = getattr(error, "orig", None) or error
            raise StoreAwayError(
                f"{self._name} can't be used as a campaign store ({cause}); "
                "check its address, its rights and the free space"
            ) from None

    def reading(self) -> contextlib.AbstractContextManager[sa.Connection]:
        """A transaction that reads, for the parts of this package."""
        return self._transaction()

    def writing(self) -> contextlib.AbstractContextManager[sa.Connection]:
        """A transaction that may write, for the parts of this package.

        Refused where a newer version has brought the tables up to date meanwhile. What this thread
        reads and writes within it belongs to it: several changes become one with
        `with store.writing():` around them. What goes wrong in there has to come out of it.
        """
        return self._writing()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        is_outermost = getattr(self._mine, "connection", None) is None
        with self._transaction(writes=True) as connection:
            if is_outermost:
                self._require_known_tables(connection)
            yield connection

    def require_known_tables(self) -> None:
        """Raises `SupersededError` where a newer version has brought the tables up to date."""
        with self.reading() as connection:
            self._require_known_tables(connection)

    def _require_known_tables(self, connection: sa.Connection) -> None:
        found = connection.exec_driver_sql(_REVISION).scalar() if self.revision else ""
        if found != self.revision:
            raise SupersededError(
                f"{self._name} was brought up to date by a newer version of this program "
                f"(revision {found}, this one works with {self.revision}): stop this one"
            )

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[sa.Connection]:
        """A transaction that sees all tables as they are at one instant, whoever writes meanwhile.

        SQLite's readers do so anyway.
        """
        options: dict[str, Any] = {"yield_per": _ROWS_AT_ONCE}
        if self._engine.dialect.name == "postgresql":
            options |= {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        with self._transaction(**options) as connection:
            yield connection

    def inserting_new(self, table: sa.Table) -> Any:
        """An INSERT that leaves rows alone which exist already."""
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    def replacing(self, table: sa.Table, *changed: str) -> Any:
        """An INSERT that sets the `changed` columns of rows which exist already."""
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        statement = dialect.insert(table)
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={name: statement.excluded[name] for name in changed},
        )

    def floor(self, connection: sa.Connection) -> int:
        """Up to where numbers may have been given before the store was restored; 0 if it wasn't.

        Whoever gives numbers that others remember (devices, gateways, followers) begins above.
        """
        return int(connection.execute(sa.select(sa.func.max(restores.c.floor))).scalar() or 0)

    def close(self) -> None:
        """Release what it holds."""
        self._engine.dispose()


_ROWS_AT_ONCE = 500
_PATIENCE_SECONDS = 30.0
"""For a file that another connection writes to."""
_REVISION = "SELECT version_num FROM alembic_version"


def open_engine(url: sa.URL, survives_power_cuts: bool = True) -> sa.Engine:
    """Connections to a database, with what SQLite has to be told of each."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if url.database in (None, "", ":memory:"):
        # One connection for all threads, or each would have a database of its own.
        engine = sa.create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    else:
        engine = sa.create_engine(url, connect_args={"timeout": _PATIENCE_SECONDS})
    # A commit has to survive a power cut: accepted deltas hang on it.
    synchronous = "FULL" if survives_power_cuts else "OFF"
    sa.event.listen(engine, "connect", partial(_set_up_sqlite, synchronous))
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(synchronous: str, connection: Any, record: object) -> None:
    # Transactions begin where we say so, see below.
    connection.isolation_level = None
    cursor = connection.cursor()
    _begin_log(cursor)
    cursor.execute(f"PRAGMA synchronous = {synchronous}")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _begin_log(cursor: sqlite3.Cursor) -> None:
    """Of two that open a new file at once SQLite refuses one: for the change to a log it doesn't
    wait, whatever time-out it was given."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads and then writes would fail where another wrote in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
