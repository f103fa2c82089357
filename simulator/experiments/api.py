"""What `tinyfleet experiment` does, for Python: docs/howto/experiment.md.

``experiment`` is everywhere the path of a YAML file, or a `Source`.
"""

from __future__ import annotations

import copy
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import ExperimentError
from simulator.experiments.comparison import Comparison, FinishedRun, write_comparison
from simulator.experiments.config import ExperimentConfig, text_of, yaml_of
from simulator.experiments.report import write_report
from simulator.experiments.runner import (
    BUILD,
    Source,
    TellOfCell,
    decided_by_seeds,
    run_experiment,
)
from simulator.experiments.workers import pool_with


def _quiet(cell: str, stage: str, done: int, of: int) -> None:
    pass


def run(
    experiment: Path | str | Source,
    out: Path | str,
    *,
    workers: int | str = 1,
    seeds: Sequence[int] | None = None,
    tell: TellOfCell = _quiet,
) -> FinishedRun:
    """Run an experiment, or go on with it; ``out`` then has its figures, tables and report.

    Args:
        experiment: what is run.
        out: folder of the run.
        workers: number of processes, or a Ray cluster; see `simulator.experiments.workers`.
        seeds: other ones than the experiment's.
        tell: hears of what is done.

    Raises: ExperimentError, WorldError, CodegenError.
    """
    source, out = _source(experiment), Path(out)
    if seeds is not None:
        source = source.with_seeds(seeds)
    return _run(source, out, workers, tell)


def _run(
    source: Source, out: Path, workers: int | str, tell: TellOfCell, build: Path | None = None
) -> FinishedRun:
    result = run_experiment(source, out, pool_with(workers), tell, build)
    finished = FinishedRun(source.config.name, result)
    write_report(Comparison((finished,)), out)
    return finished


def _source(experiment: Path | str | Source) -> Source:
    return experiment if isinstance(experiment, Source) else Source.read(Path(experiment))


def compare(
    folders: Sequence[Path | str], out: Path | str, *, target_accuracy: float | None = None
) -> Comparison:
    """Put runs beside each other; ``out`` then has comparison.json and a report.

    ``target_accuracy`` takes the place of the experiments' own.

    Raises: ExperimentError where a folder has no result.
    """
    if len({Path(one).resolve() for one in folders}) < len(folders):
        raise ExperimentError("a run can't be compared with itself; name each folder once")
    labels = _labels([Path(one).resolve().parts for one in folders], "/")
    runs = [
        FinishedRun.read(Path(folder), label) for folder, label in zip(folders, labels, strict=True)
    ]
    comparison = Comparison(tuple(runs), target_accuracy)
    write_comparison(comparison, Path(out))
    write_report(comparison, Path(out))
    return comparison


def _labels(paths: Sequence[Sequence[str]], between: str) -> list[str]:
    """Last parts of paths that differ; with those above where two have the same."""
    for depth in itertools.count(1):
        labels = [between.join(one[-depth:]) for one in paths]
        if len(set(labels)) == len(labels):
            break
    return labels


def sweep(
    experiment: Path | str,
    vary: Mapping[str, Sequence[Any]],
    out: Path | str,
    *,
    workers: int | str = 1,
    seeds: Sequence[int] | None = None,
    tell: TellOfCell = _quiet,
) -> Comparison:
    """Run an experiment with every combination of values, each in a folder of ``out``; compare.

    ``vary`` has values by the dotted path of a field, as ``defaults.learning_rate``.

    Raises: as `run`; ExperimentError too for a path that leads nowhere.
    """
    path, out = Path(experiment), Path(out)
    folders = []
    for point in points(yaml_of(text_of(path), str(path)), vary):
        source = Source(ExperimentConfig.of(point.content, point.name), path.resolve().parent)
        if seeds is not None:
            source = source.with_seeds(seeds)
        folders.append(out / point.name)
        _run(source, folders[-1], workers, _of_point(tell, point.name), out / BUILD)
    return compare(folders, out)


def _of_point(tell: TellOfCell, point: str) -> TellOfCell:
    return lambda cell, *rest: tell(f"{point}: {cell}", *rest)


@dataclass(frozen=True)
class Point:
    """One combination of a sweep's values."""

    name: str
    """Of its folder."""
    content: Any
    """Of its file."""


def points(content: Any, vary: Mapping[str, Sequence[Any]]) -> Iterator[Point]:
    """All combinations, the last path's values fastest.

    Raises: ExperimentError for a path on which something isn't a section.
    """
    names = set()
    fields = _labels([path.split(".") for path in vary], ".")
    for values in itertools.product(*vary.values()):
        made = copy.deepcopy(content)
        for path, value in zip(vary, values, strict=True):
            _put(made, path, value)
        name = ",".join(
            f"{field}={_shown(value)}" for field, value in zip(fields, values, strict=True)
        )
        if name in names:
            raise ExperimentError(f"vary: two points are called {name}; name each value once")
        names.add(name)
        yield Point(name, made)


def _put(content: Any, path: str, value: Any) -> None:
    *above, last = path.split(".")
    here = content
    for part in above:
        here = here.setdefault(part, {}) if isinstance(here, dict) else None
    if not isinstance(here, dict) or not last:
        raise ExperimentError(f"vary: {path} leads nowhere; give the dotted path of a field")
    here[last] = value


def _shown(value: Any) -> str:
    """Fit for the name of a folder."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", str(value)).strip("-") or "none"


@dataclass(frozen=True)
class Replay:
    """What came of a replay."""

    equal: bool
    differing: tuple[str, ...]
    """Files of the run that came out different, or are missing now or then."""


def replay(folder: Path | str, *, workers: int | str = 1, tell: TellOfCell = _quiet) -> Replay:
    """Run once more what a run's folder says, and compare byte by byte. ``folder`` stays as it is.

    Raises: as `run`; ExperimentError where the folder isn't that of a finished run.
    """
    folder = Path(folder)
    source = Source.of_run(folder)
    FinishedRun.read(folder, folder.name)
    with tempfile.TemporaryDirectory(prefix="tinyfleet-") as again:
        run_experiment(source, Path(again), pool_with(workers), tell)
        before, after = decided_by_seeds(folder), decided_by_seeds(Path(again))
    differing = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    return Replay(not differing, tuple(differing))
