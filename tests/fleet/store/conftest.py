from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fleet.store import sqlite_url
from tests.fleet.store import postgres

_names = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    with postgres.server() as url:
        yield url


@pytest.fixture
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str | None]:
    """The URL of an empty database of a kind: memory, sqlite or postgres."""

    def make(kind: str) -> str | None:
        if kind == "memory":
            return None
        if kind == "sqlite":
            return sqlite_url(tmp_path / f"store-{next(_names)}.sqlite")
        server, name = request.getfixturevalue("postgres_server"), f"store{next(_names)}"
        engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return f"{server}/{name}"

    return make
