"""The tables of a run: written while cells run, put together at the end, never whole in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple, Self

from simulator.errors import ExperimentError
from simulator.experiments.results import Cell, RoundResult
from simulator.virtual.offline import Score
from simulator.virtual.pool import MAXIMA, Figures

ROWS_AT_ONCE = 65_536
"""In memory, and in a row group of a file."""


class Table(NamedTuple):
    """What is written row by row."""

    file: str
    columns: Mapping[str, str]
    """Name → type, as Arrow calls it."""


_CELL = {"strategy": "string", "seed": "int64"}
_TYPES = {"int": "int64", "float": "double", "str": "string", "Mapping[str, int]": "string"}
ROUNDS = Table(
    "rounds.parquet",
    {
        **_CELL,
        **{
            one.name: _TYPES[str(one.type)]
            for kind in (RoundResult, Figures)
            for one in fields(kind)
            if one.name != "totals"
        },
    },
)
SCORES = Table(
    "devices.parquet",
    {
        **_CELL,
        "training_round": "int64",
        "seconds": "double",
        "group": "string",
        "device": "int64",
        "samples": "int64",
        "correct": "int64",
    },
)
REPORTS = Table(
    "reports.parquet",
    {
        **_CELL,
        "round": "int64",
        "kind": "string",
        "device": "string",
        "board": "string",
        "plan": "string",
        "train_samples": "int64",
        "held_out": "int64",
        "correct_before": "int64",
        "correct_after": "int64",
        "correct_local": "int64",
        "kept": "string",
        "loss_before": "double",
        "loss_after": "double",
        "coded_bytes": "int64",
        "seconds": "double",
    },
)
SPENT = Table(
    "spent.parquet",
    {
        **_CELL,
        "device": "int64",
        **{
            one.name: _TYPES[str(one.type)]
            for one in fields(Figures)
            if one.name not in ("devices", *MAXIMA)
        },
        "flash_wear": "double",
    },
)


class TableWriter:
    """A Parquet file in the making, as a context; after it the file is there, and whole.

    Its bytes follow from its rows, however many of them were added at once.
    """

    def __init__(self, folder: Path, table: Table) -> None:
        """``folder`` is there."""
        # Each takes a tenth of a second to import.
        import pyarrow
        from pyarrow import parquet

        self._path = folder / table.file
        self._made = self._path.with_name(self._path.name + ".new")
        self._arrow, self._parquet = pyarrow, parquet
        self._schema = pyarrow.schema(
            [(name, pyarrow.type_for_alias(kind)) for name, kind in table.columns.items()]
        )
        self._writer = parquet.ParquetWriter(self._made, self._schema)
        self._waiting: list[Any] = []
        self._rows = 0

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """End the file; after an error nothing is left of it."""
        if kind is None:
            self._write(self._rows)
        self._writer.close()
        if kind is None:
            self._made.replace(self._path)
        else:
            self._made.unlink()

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows with all columns."""
        self._add(self._arrow.RecordBatch.from_pylist(rows, self._schema))

    def copy(self, path: Path) -> None:
        """All rows of another such table. Raises: ExperimentError where it can't be read."""
        try:
            with self._parquet.ParquetFile(path) as other:
                for batch in other.iter_batches(ROWS_AT_ONCE):
                    self._add(batch)
        except (OSError, self._arrow.ArrowException) as error:
            raise ExperimentError(
                f"{path}: can't be read ({error}); remove {path.parent} to run its cell anew"
            ) from None

    def _add(self, batch: Any) -> None:
        self._waiting.append(batch)
        self._rows += batch.num_rows
        if self._rows >= ROWS_AT_ONCE:
            self._write(self._rows // ROWS_AT_ONCE * ROWS_AT_ONCE)

    def _write(self, count: int) -> None:
        """The first so many rows of those that wait."""
        if count:
            waiting = self._arrow.Table.from_batches(self._waiting, self._schema).combine_chunks()
            self._writer.write_table(waiting.slice(0, count), ROWS_AT_ONCE)
            self._waiting = waiting.slice(count).to_batches()
            self._rows -= count


class CellTables:
    """What a cell adds to its run's tables, as a context; after it they are in its folder."""

    def __init__(self, folder: Path, strategy: str, seed: int) -> None:
        """``folder`` is there."""
        self._about = {"strategy": strategy, "seed": seed}
        self._stack = ExitStack()
        self._scores = self._stack.enter_context(TableWriter(folder, SCORES))
        self._reports = self._stack.enter_context(TableWriter(folder, REPORTS))
        self._spent = self._stack.enter_context(TableWriter(folder, SPENT))

    def __enter__(self) -> Self:
        """As it is."""
        return self

    def __exit__(self, *how: Any) -> None:
        """See `TableWriter`."""
        self._stack.__exit__(*how)

    def add_scores(
        self,
        training_round: int,
        seconds: float,
        devices: Mapping[int, Score],
        never_trained: Sequence[Score],
    ) -> None:
        """How a version does on devices of the fleet, by number, and on those outside of it."""
        about = {**self._about, "training_round": training_round, "seconds": seconds}
        groups = (("fleet", devices.items()), ("never-trained", enumerate(never_trained)))
        self._scores.add(
            [
                {**about, "group": group, "device": number, **score._asdict()}
                for group, scores in groups
                for number, score in scores
            ]
        )

    def add_reports(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """What devices said with their deltas; `REPORTS`, but for the cell's name."""
        self._reports.add([{**self._about, **one} for one in rows])

    def add_spent(self, devices: Mapping[int, Figures]) -> None:
        """What each device of the fleet has done in the end, by number."""
        self._spent.add(
            [
                {
                    **self._about,
                    "device": number,
                    **{name: told for name, told in vars(one).items() if name in SPENT.columns},
                    "flash_wear": one.most_flash_wear,
                }
                for number, one in devices.items()
            ]
        )


def write_tables(out: Path, cells: Sequence[tuple[Cell, Path]]) -> None:
    """The tables of a run, of cells and the folders that have theirs.

    Raises: ExperimentError naming a cell's table that can't be read.
    """
    with TableWriter(out, ROUNDS) as rounds:
        for cell, _ in cells:
            rounds.add([_round_row(cell, one) for one in cell.result.rounds])
    for table in (SCORES, REPORTS, SPENT):
        with TableWriter(out, table) as whole:
            for _, folder in cells:
                whole.copy(folder / table.file)


def _round_row(cell: Cell, one: RoundResult) -> dict[str, Any]:
    row = {name: value for name, value in vars(one).items() if name != "totals"}
    declined = json.dumps(dict(one.declined), sort_keys=True)
    about = {"strategy": cell.strategy, "seed": cell.seed}
    return {**about, **row, "declined": declined, **asdict(one.totals)}
