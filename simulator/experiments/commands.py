"""What `tinyfleet experiment` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, get_args

import typer

from fleet import examples
from fleet.aggregation.rules import Rule
from fleet.cli._output import console, print_json, table
from fleet.cli._progress import stage_bars
from simulator.errors import ExperimentError
from simulator.experiments import api
from simulator.experiments.comparison import (
    COLUMNS,
    TARGET_COLUMNS,
    Comparison,
    rows,
    target_rows,
    without_empty,
)
from simulator.experiments.config import strategy_kinds, yaml_of
from simulator.experiments.mlflow_export import export_to_mlflow
from simulator.experiments.report import REPORT
from simulator.experiments.runner import CELLS_DONE, TellOfCell
from simulator.machines.registry import machine_names
from simulator.world.datasets.registry import GROUP as DATASETS
from simulator.world.datasets.registry import dataset_kinds


def run(file: Path, out: Path, workers: str, seeds: Sequence[int] | None, *, as_json: bool) -> None:
    """Run an experiment with progress bars, then a table."""
    with _progress(hidden=as_json) as tell:
        finished = api.run(file, out, workers=workers, seeds=seeds, tell=tell)
    if as_json:
        print_json(finished.result)
        return
    _show(Comparison((finished,)), finished.label, out)


def sweep(
    file: Path,
    vary: Sequence[str],
    out: Path,
    workers: str,
    seeds: Sequence[int] | None,
    *,
    as_json: bool,
) -> None:
    """Run every point, then show them in one table."""
    values = dict(_values(text) for text in vary)
    if len(values) < len(vary):
        raise ExperimentError("--vary: a field is there twice; give all of its values at once")
    with _progress(hidden=as_json) as tell:
        found = api.sweep(file, values, out, workers=workers, seeds=seeds, tell=tell)
    _compared(found, out, as_json=as_json)


def _values(text: str) -> tuple[str, list[Any]]:
    """A field's path and its values, which are written as in a YAML list."""
    path, _, listed = text.partition("=")
    values = yaml_of(f"[{listed}]", f"--vary {path}")
    if not path or not isinstance(values, list) or not values:
        raise ExperimentError(f"--vary {text}: write FIELD=VALUE,VALUE")
    return path, values


def compare(
    folders: Sequence[Path], out: Path, target_accuracy: float | None, *, as_json: bool
) -> None:
    """Runs in one table."""
    found = api.compare(folders, out, target_accuracy=target_accuracy)
    _compared(found, out, as_json=as_json)


def _compared(found: Comparison, out: Path, *, as_json: bool) -> None:
    if as_json:
        print_json(found.to_json())
        return
    _show(found, f"{len(found.runs)} runs", out)


def replay(folder: Path, workers: str, *, as_json: bool) -> None:
    """Say whether results are the same; exit code 1 where they aren't."""
    with _progress(hidden=as_json) as tell:
        found = api.replay(folder, workers=workers, tell=tell)
    if as_json:
        print_json(asdict(found))
    elif found.equal:
        console().print(f"{folder} replays: the same result byte for byte.", soft_wrap=True)
    if not found.equal:
        if not as_json:
            raise ExperimentError(
                f"{folder} doesn't replay: {', '.join(found.differing)} came out different; it was "
                "made by other code or of other files (run.json has the commit)"
            )
        raise typer.Exit(1)


def export(folder: Path, to: str, *, as_json: bool) -> None:
    """Write a run to MLflow."""
    count = export_to_mlflow(folder, to)
    if as_json:
        print_json({"runs": count, "mlflow": to})
    else:
        console().print(f"{count} runs are in {to}.", markup=False, soft_wrap=True)


def list_all(*, as_json: bool) -> None:
    """Print what a file can name."""
    found = {
        "strategies": {name: _first_line(kind) for name, kind in strategy_kinds().items()},
        "datasets": {name: " ".join(_dataset(name).source.split()) for name in dataset_kinds()},
        "aggregation rules": {
            kind.model_fields["rule"].default: _first_line(kind)
            for kind in get_args(get_args(Rule)[0])
        },
        "machines": dict.fromkeys(machine_names(), ""),
        "examples": {
            str(path): yaml_of(path.read_text(), str(path))["description"] for path in _examples()
        },
    }
    if as_json:
        print_json(found)
        return
    screen = console()
    for title, named in found.items():
        if any(named.values()):
            facts = list(named.items())
            screen.print(table(title.capitalize(), ["name", "what it is"], facts))
        elif named:
            screen.print(f"{title.capitalize()}: {', '.join(named)}")


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").splitlines()[0]


def _dataset(name: str) -> Any:
    return next(iter(entry_points(group=DATASETS, name=name))).load()


def _examples() -> list[Path]:
    here = Path.cwd()
    found = sorted(examples.folder("experiments").glob("*.yaml"))
    return [path.relative_to(here) if path.is_relative_to(here) else path for path in found]


def _show(found: Comparison, title: str, out: Path) -> None:
    screen = console()
    screen.print(table(title, *without_empty(COLUMNS, rows(found))))
    if found.target:
        screen.print(
            table(
                f"Until the mean accuracy of devices is {found.target}",
                TARGET_COLUMNS,
                target_rows(found),
            )
        )
    for one in found.series:
        for cell in one.cells:
            if cell["reason"]:
                screen.print(
                    f"{one.label}, seed {cell['seed']}: {cell['state']}: {cell['reason']}",
                    markup=False,
                    soft_wrap=True,
                )
    screen.print(f"Report: {out / REPORT}", markup=False, soft_wrap=True)


@contextmanager
def _progress(*, hidden: bool) -> Iterator[TellOfCell]:
    """Bars on a terminal; where there is none, a line for each cell that is done."""
    screen = console()
    with stage_bars(hidden=hidden) as bar:

        def tell(cell: str, stage: str, done: int, of: int) -> None:
            bar(stage, done, of)
            if stage == CELLS_DONE and not hidden and not screen.is_terminal:
                screen.print(f"{cell}: {done} of {of}", markup=False, soft_wrap=True)

        yield tell
