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


def database(request: pytest.FixtureRequest, kind: str, folder: Path) -> str | None:
    """The URL of an empty database of a kind: memory, sqlite (in the folder) or postgres."""
    if kind == "memory":
        return None
    name = f"store{next(_names)}"
    if kind == "sqlite":
        return sqlite_url(folder / name)
    server = request.getfixturevalue("postgres_server")
    engine = sa.create_engine(f"{server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return f"{server}/{name}"


@pytest.fixture
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], str | None]:
    """Makes an empty database of a kind; gives its URL."""
    return lambda kind: database(request, kind, tmp_path)
