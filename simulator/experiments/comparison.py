"""Finished runs beside each other: mean and spread over seeds of each strategy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from simulator.errors import ExperimentError
from simulator.experiments.results import write_json
from simulator.experiments.runner import FORMAT, RESULT

COMPARISON = "comparison.json"

Point = Mapping[str, Any]
"""A point of a cell's curve, as result.json has it."""


class Spread(NamedTuple):
    """Of a figure over seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one value at least."""
        return cls(sum(values) / len(values), min(values), max(values))


@dataclass(frozen=True)
class FinishedRun:
    """A run's result."""

    label: str
    result: Mapping[str, Any]
    """What result.json holds."""

    @classmethod
    def read(cls, folder: Path, label: str) -> FinishedRun:
        """Of a folder. Raises: ExperimentError."""
        path = folder / RESULT
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ExperimentError(
                f"{folder} has no finished run ({error}); finish it with tinyfleet experiment run"
            ) from None
        if not isinstance(result, dict) or result.get("format") != FORMAT:
            raise ExperimentError(f"{path} isn't a result of the format {FORMAT}")
        return cls(label, result)

    @property
    def experiment(self) -> Mapping[str, Any]:
        """The experiment's file, every default included."""
        found: Mapping[str, Any] = self.result["experiment"]
        return found


@dataclass(frozen=True, eq=False)
class Series:
    """One strategy of one run: a curve for each seed."""

    label: str
    run: FinishedRun
    strategy: str
    cells: Sequence[Mapping[str, Any]]
    """By seed, as result.json has them."""
    target_accuracy: float | None

    @property
    def has_fleet(self) -> bool:
        """Whether time, bytes and energy passed; else it is a bound, as training in one place."""
        return any(cell["has_fleet"] for cell in self.cells)

    @cached_property
    def rounds(self) -> list[int]:
        """Training rounds after which every seed's version was scored."""
        each = [{point["training_round"] for point in cell["curve"]} for cell in self.cells]
        return sorted(set.intersection(*each)) if each else []

    def over_rounds(self, figure: Callable[[Point], float | None]) -> list[Spread | None]:
        """A figure after each of `rounds`; None where a seed has none."""
        return [self._spread([figure(one) for one in at]) for at in self._points()]

    def _points(self) -> Iterator[list[Point]]:
        by_round = [
            {point["training_round"]: point for point in cell["curve"]} for cell in self.cells
        ]
        for number in self.rounds:
            yield [points[number] for points in by_round]

    @staticmethod
    def _spread(values: Sequence[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return Spread.of(known) if known and len(known) == len(values) else None

    def last(self, figure: Callable[[Point], float | None]) -> Spread | None:
        """A figure in the end."""
        ends = [cell["curve"][-1] for cell in self.cells if cell["curve"]]
        return self._spread([figure(one) for one in ends])

    @property
    def reached(self) -> list[Point]:
        """Of each seed that got there, the first point at the target accuracy."""
        found = []
        for cell in self.cells:
            there = [
                point
                for point in cell["curve"]
                if self.target_accuracy is not None
                and (mean_accuracy(point) or 0.0) >= self.target_accuracy
            ]
            found += there[:1]
        return found

    @property
    def state(self) -> str:
        """``finished``, or how else cells ended."""
        others = sorted({cell["state"] for cell in self.cells} - {"finished"})
        return ", ".join(others) or "finished"


def _of(group: str, name: str) -> Callable[[Point], float | None]:
    def figure(point: Point) -> float | None:
        return None if point[group] is None else float(point[group][name])

    return figure


mean_accuracy, median_accuracy, worst_tenth = (
    _of("accuracy", name) for name in ("mean", "median", "worst_tenth")
)
never_trained = _of("never_trained", "mean")


def quantity(name: str) -> Callable[[Point], float | None]:
    """A figure that adds up: ``seconds``, ``bytes_up``, ``milliwatt_hours``, …"""
    return lambda point: float(point[name])


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs beside each other; a single one too."""

    runs: tuple[FinishedRun, ...]
    target_accuracy: float | None = None
    """In place of the experiments' own."""

    @cached_property
    def series(self) -> list[Series]:
        """Every strategy of every run."""
        found = []
        for run in self.runs:
            target = self.target_accuracy
            if target is None:
                target = run.experiment.get("target_accuracy")
            for strategy in run.experiment["strategies"]:
                cells = [one for one in run.result["cells"] if one["strategy"] == strategy]
                label = strategy if len(self.runs) == 1 else f"{run.label}: {strategy}"
                if cells:
                    found.append(Series(label, run, strategy, cells, target))
        return found

    @property
    def target(self) -> str:
        """The target accuracy, or those that there are, in words."""
        targets = [one.target_accuracy for one in self.series if one.target_accuracy is not None]
        return ", ".join(f"{100 * one:g} %" for one in sorted(set(targets)))

    def to_json(self) -> dict[str, Any]:
        """What comparison.json holds."""
        return {
            "format": "tinyfleet-comparison/1",
            "series": [
                {
                    "run": one.run.label,
                    "strategy": one.strategy,
                    "seeds": [cell["seed"] for cell in one.cells],
                    "state": one.state,
                    "target_accuracy": one.target_accuracy,
                    "last": [cell["last"] for cell in one.cells],
                    "reached": one.reached,
                }
                for one in self.series
            ],
        }


COLUMNS = (
    "strategy",
    "seeds",
    "state",
    "accuracy",
    "median",
    "worst tenth",
    "never trained",
    "bytes up",
    "bytes down",
    "mWh",
    "flash erases",
    "worst flash wear",
)
TARGET_COLUMNS = ("strategy", "reached", "round", "seconds", "bytes up", "bytes down", "mWh")


def rows(comparison: Comparison) -> list[list[str]]:
    """A row of `COLUMNS` for each strategy, as text: means over seeds, (lowest to highest)."""
    shown = []
    for one in comparison.series:
        accuracies = (median_accuracy, worst_tenth, never_trained)
        costs = ("bytes_up", "bytes_down", "milliwatt_hours", "flash_erases")
        shown.append(
            [
                one.label,
                str(len(one.cells)),
                one.state,
                with_ends(one.last(mean_accuracy)),
                *(percent(one.last(figure)) for figure in accuracies),
                *(number(one.last(quantity(name))) if one.has_fleet else "" for name in costs),
                worn(one.last(quantity("most_flash_wear"))) if one.has_fleet else "",
            ]
        )
    return shown


def target_rows(comparison: Comparison) -> list[list[str]]:
    """A row of `TARGET_COLUMNS` for each strategy, as text: means over the seeds that got there."""
    shown = []
    for one in comparison.series:
        there = one.reached
        means = [
            number(Spread.of([float(point[name]) for point in there]) if there else None)
            for name in ("training_round", "seconds", "bytes_up", "bytes_down", "milliwatt_hours")
        ]
        if not one.has_fleet:
            means[1:] = [""] * 4
        shown.append([one.label, f"{len(there)} of {len(one.cells)}", *means])
    return shown


def without_empty(
    columns: Sequence[str], shown: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that say nothing."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in shown)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in shown]


def percent(value: Spread | None) -> str:
    """A share with one digit behind the point."""
    return "" if value is None else f"{100 * value.mean:.1f} %"


def worn(value: Spread | None) -> str:
    """A share of what a flash stands, with as many digits as one reads."""
    return "" if value is None else f"{100 * value.mean:.2g} %"


def with_ends(value: Spread | None) -> str:
    """The same, and its spread where there is one."""
    if value is None or value.low == value.high:
        return percent(value)
    return f"{percent(value)} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def number(value: Spread | None) -> str:
    """A figure with as many digits as one reads."""
    if value is None:
        return ""
    return f"{value.mean:,.0f}" if value.mean >= 100 else f"{value.mean:,.3g}"


def write_comparison(comparison: Comparison, out: Path) -> None:
    """``comparison.json``: what the tables say, for programs."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / COMPARISON, comparison.to_json())
