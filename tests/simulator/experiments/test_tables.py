"""Tables are written a part at a time, and nobody can tell from the file in which parts."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from pyarrow import parquet

from simulator.experiments import tables
from simulator.experiments.tables import SCORES, TableWriter
from simulator.virtual.offline import Score

ROWS = [
    {
        "strategy": "fedavg",
        "seed": 7,
        "training_round": number // 5,
        "seconds": number / 3,
        "group": "fleet",
        "device": number % 5,
        "samples": 3,
        "correct": number % 4,
    }
    for number in range(23)
]


def written(folder: Path, at_once: int) -> bytes:
    with TableWriter(folder, SCORES) as table:
        for start in range(0, len(ROWS), at_once):
            table.add(ROWS[start : start + at_once])
        table.add([])
    return (folder / SCORES.file).read_bytes()


def test_a_tables_bytes_follow_from_its_rows_and_few_are_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 4)
    whole = written(tmp_path, len(ROWS))
    with parquet.ParquetFile(tmp_path / SCORES.file) as file:
        assert file.read().to_pylist() == ROWS
        groups = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
    assert groups == [4, 4, 4, 4, 4, 3]
    assert [written(tmp_path, at_once) for at_once in (1, 3, 4, 9)] == [whole] * 4


def test_a_table_that_isnt_finished_leaves_the_one_before(tmp_path: Path) -> None:
    before = written(tmp_path, 5)
    with suppress(KeyboardInterrupt), TableWriter(tmp_path, SCORES) as table:
        table.add(ROWS[:3])
        raise KeyboardInterrupt
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_cells_tables_come_one_after_the_other(tmp_path: Path) -> None:
    """Also where the first cell has no rows."""
    folders = [tmp_path / name for name in ("none", "some", "more")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        with tables.CellTables(folder, folder.name, seed=number) as own:
            for at in range(number):
                own.add_scores(at, 1.5 * at, {3: Score(4, at), 1: Score(4, 2)}, [Score(9, 9)])
    with TableWriter(tmp_path, SCORES) as whole:
        for folder in folders:
            whole.copy(folder / SCORES.file)
    rows = parquet.read_table(tmp_path / SCORES.file).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (folder.name, seed, at, 1.5 * at, *rest)
        for seed, folder in enumerate(folders)
        for at in range(seed)
        for rest in (
            ("fleet", 3, 4, at),
            ("fleet", 1, 4, 2),
            ("never-trained", 0, 9, 9),
        )
    ]
