"""The store: what it writes for a delta, and what it has again after a crash."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fleet.errors import StoreError
from fleet.gateway.store import RoundStore
from tests.fleet.gateway.bench import Bench
from tests.fleet.gateway.deltas import PLAN, delta_chunks

VALUES = 20_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.announce("a", "b", "c", "d", "e")
    yield made
    made.store.close()


def sparse(number: int) -> np.ndarray:
    values = np.zeros(VALUES, np.int32)
    values[number::97] = number + 1
    return values


def disk_bytes(bench: Bench) -> int:
    return (bench.folder / "store.sqlite-wal").stat().st_size


def test_a_small_delta_of_a_large_plan_is_not_paid_for_with_the_whole_sum(bench: Bench) -> None:
    names = ["a", "b", "c", "d", "e"]
    bench.start(names=names, values=VALUES, target=9)
    bench.store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for number, name in enumerate(names[:-1]):
        bench.send(name, delta_chunks(bench.task(name), sparse(number), 3))
    sum_bytes = 8 * VALUES
    assert disk_bytes(bench) < sum_bytes
    bench.crash()
    bench.send("e", delta_chunks(bench.task("e"), sparse(4), 3))
    wanted = sum(sparse(number).astype(np.int64) * 3 for number in range(5))
    assert np.array_equal(bench.sum(), wanted)
    left = bench.store._db.execute("SELECT count(*) FROM unfolded").fetchone()
    assert left == (0,), "of a round that is over only the sum is kept"


def test_deltas_that_outweigh_the_sum_are_written_as_the_sum(bench: Bench) -> None:
    names = ["a", "b", "c"]
    bench.start(names=names, values=40, target=9)
    random = np.random.default_rng(1)
    wanted = np.zeros(40, np.int64)
    for name in names:
        values = random.integers(-(2**31), 2**31, 40).astype(np.int32)
        wanted += values.astype(np.int64) * 7
        bench.send(name, delta_chunks(bench.task(name), values, 7))
    assert bench.store._db.execute("SELECT count(*) FROM unfolded").fetchone() < (3,)
    bench.crash()
    assert np.array_equal(bench.sum(), wanted)
    (part,) = bench.collect()["sums"][PLAN]
    assert (part["weight"], part["devices"]) == (21, 3)


def test_a_round_that_ends_right_after_a_crash_has_all_that_was_accepted(bench: Bench) -> None:
    bench.start(names=["a", "b"], values=VALUES)
    bench.send("a", delta_chunks(bench.task("a"), sparse(0), 3))
    bench.crash()
    assert np.array_equal(bench.sum(), sparse(0).astype(np.int64) * 3)


def test_a_transaction_that_has_returned_survives_a_power_cut(tmp_path: Path) -> None:
    store = RoundStore(tmp_path / "store.sqlite")
    assert store._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    full = 2
    assert store._db.execute("PRAGMA synchronous").fetchone() == (full,)
    store.close()


def test_a_store_of_another_version_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE rounds (id INTEGER PRIMARY KEY)")
        database.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"version 1, this gateway reads 4; let.*move the file"):
        RoundStore(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_store_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.write_text("not a database " * 100)
    with pytest.raises(StoreError, match=r"store.sqlite: can't be used as round store"):
        RoundStore(path)
