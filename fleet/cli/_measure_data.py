"""`tinyfleet measure --data`: a bundle on the user's own labelled samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from codegen.firmware.bundle import load_bundle
from codegen.graph.ir import LOSS_UNITS
from codegen.plan_search.evaluation import Evaluation, Figures, evaluate_bundle
from codegen.plan_search.training import Schedule
from fleet.cli._output import console, percent, print_json, table
from fleet.cli._progress import stage_bars
from simulator.machines.image_engine import find_plan

_MOST_CLASSES = 20
_MIX_UPS_SHOWN = 12


def measure_data(
    *,
    bundle: Path,
    plan: str | None,
    data: Path,
    model: Path | None,
    schedule: Schedule,
    held_out: float,
    as_json: bool,
) -> None:
    """Score the bundle and print the figures; refusals are exceptions of codegen and simulator."""
    loaded = load_bundle(bundle)
    with stage_bars(hidden=as_json) as tell:
        found = evaluate_bundle(
            loaded, find_plan(loaded, plan), data, schedule, model, held_out, tell
        )
    if as_json:
        print_json(found.to_json())
    else:
        _show(found)


def _show(found: Evaluation) -> None:
    screen = console()
    columns = {"as compiled": found.before}
    if found.after is not None:
        columns[f"after {found.epochs} epoch{'s' if found.epochs > 1 else ''}"] = found.after
    if found.float_model is not None:
        columns["float model"] = found.float_model
    what = f"{found.before.samples} samples"
    if found.after is not None:
        what += f" held out of {found.before.samples + found.trained_samples}"
    rows: dict[str, Callable[[Figures], float | str | None]] = {
        f"loss, {LOSS_UNITS[found.loss]}": lambda f: f.loss,
        "right": lambda f: _share(f.accuracy),
        "mean absolute error": lambda f: f.mean_absolute_error,
        "variance explained": lambda f: _share(f.explained),
        "same as the float model": lambda f: _share(f.agreement),
    }
    shown = []
    for name, of in rows.items():
        values = [of(figures) for figures in columns.values()]
        if any(value is not None for value in values):
            shown.append([name, *("n/a" if value is None else value for value in values)])
    if shown:
        screen.print(table(f"Plan {found.plan} on {what}", ["what", *columns], shown))
    else:
        screen.print(f"{what}: the bundle only infers, there is no loss to measure.")
    last = found.after or found.before
    for number, counts in enumerate(last.confusion or []):
        screen.print(_confusion(found, last, number, counts))
    if found.after is not None:
        screen.print(
            f"Trained on {found.trained_samples} samples, the learning rate falling from "
            f"{found.learning_rate:g} to 0.",
            soft_wrap=True,
        )


def _share(value: float | None) -> str | None:
    return None if value is None else percent(value)


def _confusion(found: Evaluation, last: Figures, number: int, counts: list[list[int]]) -> Table:
    names = [str(index) for index in range(len(counts))]
    title = "Confusion"
    if found.loss == "binary":
        names = ["no", "yes"]
        title += f" of output {number}" if len(last.confusion or []) > 1 else ""
    title += " after training" if found.after is not None else ""
    if len(counts) <= _MOST_CLASSES:
        rows = [[name, *row] for name, row in zip(names, counts, strict=True)]
        return table(f"{title}: rows are the labels", ["is", *names], rows)
    mixed = sorted(
        ((count, i, j) for i, row in enumerate(counts) for j, count in enumerate(row) if i != j),
        reverse=True,
    )
    rows = [[names[i], names[j], count] for count, i, j in mixed[:_MIX_UPS_SHOWN] if count]
    return table(f"{title}: most frequent", ["is", "taken for", "samples"], rows)
