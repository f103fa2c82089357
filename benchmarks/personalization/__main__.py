"""Tables and picture of experiments with models of one's own (docs/results/personalization.md).

    python -m benchmarks.personalization out/har-personal --floats out/har-floats.json
    python -m benchmarks.personalization out/har-personal --picture docs/images/own-models.svg

Means over seeds and their standard deviation; differences are between cells of one seed.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from simulator.experiments.plots import COLOURS, INK, PAPER

Cell = dict[str, Any]
Measure = Callable[[Cell], float]


def main() -> None:
    """Print the table of a run, and draw it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="folder of the experiment's run")
    parser.add_argument("--floats", type=Path, help="what benchmarks.personalization.floats said")
    parser.add_argument("--shared", default="shared", help="the strategy that is compared with")
    parser.add_argument("--picture", type=Path, help="SVG to write")
    given = parser.parse_args()
    cells: dict[str, list[Cell]] = {}
    for cell in json.loads((given.run / "result.json").read_text())["cells"]:
        cells.setdefault(cell["strategy"], []).append(cell)
    floats = json.loads(given.floats.read_text()) if given.floats else []
    for line in _table(cells, floats, given.shared):
        print(line)
    if given.picture:
        given.picture.write_text(_svg(_picture(cells)), encoding="utf-8")


def _accuracy(name: str, of: str = "accuracy", back: int = 1) -> Measure:
    return lambda cell: 100 * float(cell["curve"][-back][of][name])


def _told(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ± {np.std(values):.1f}"


def _table(cells: dict[str, list[Cell]], floats: list[Any], shared: str) -> list[str]:
    lines = [
        "| strategy | mean % | worst tenth % | more than shared: mean | worst tenth | "
        "what all share, mean % | who joins later, mean % | once tuned | devices use | MB up | "
        "mWh |",
        "|" + "---|" * 11,
    ]
    base = {cell["seed"]: cell for cell in cells[shared]}
    for name, of in cells.items():
        row = [f"`{name}`"]
        for measure in (_accuracy("mean"), _accuracy("worst_tenth")):
            row.append(_told([measure(cell) for cell in of]))
        for measure in (_accuracy("mean"), _accuracy("worst_tenth")):
            more = [measure(cell) - measure(base[cell["seed"]]) for cell in of]
            row.append("" if name == shared else _told(more))
        has_own = all("kept" in cell["facts"] for cell in of)
        shared_version = _accuracy("mean", back=2)
        row.append(_told([shared_version(cell) for cell in of]) if has_own else "")
        never = all(cell["curve"][-1]["never_trained"] for cell in of)
        on_others = _accuracy("mean", "never_trained")
        row.append(_told([on_others(cell) for cell in of]) if never else "")
        tuned = [cell["facts"].get("newcomers", {}).get("tuned") for cell in of]
        row.append(_told([100 * one["mean"] for one in tuned]) if all(tuned) else "")
        row.append(_kept(of) if has_own else "")
        for field, unit in (("bytes_up", 1e6), ("milliwatt_hours", 1.0)):
            spent = [cell["curve"][-1][field] / unit for cell in of]
            row.append(f"{np.mean(spent):.2f}" if of[0]["has_fleet"] else "")
        lines.append("| " + " | ".join(row) + " |")
    for name in floats[0] if floats else ():
        if name != "seed":
            row = [
                _told([100 * one[name][what] for one in floats]) for what in ("mean", "worst_tenth")
            ]
            lines.append(f"| float, {name} | {' | '.join(row)} |" + " |" * 8)
    return lines


def _kept(cells: Sequence[Cell]) -> str:
    """Of all seeds' devices, what they work with."""
    count = {
        use: sum(cell["facts"]["kept"].get(use, 0) for cell in cells)
        for use in ("shared", "personal", "local")
    }
    return ", ".join(f"{number} {use}" for use, number in count.items() if number)


def _picture(cells: dict[str, list[Cell]]) -> Figure:
    """A line for each strategy: worst tenth and mean, and each seed's as a small dot."""
    figure = Figure(figsize=(7.2, 0.34 * len(cells) + 1.1))
    axes = figure.add_axes((0.2, 0.14, 0.77, 0.76))
    measures = (("worst tenth", _accuracy("worst_tenth")), ("mean", _accuracy("mean")))
    for place, of in enumerate(cells.values()):
        ends = []
        for (_, measure), colour in zip(measures, COLOURS, strict=False):
            values = [measure(cell) for cell in of]
            ends.append(float(np.mean(values)))
            axes.plot(values, [place] * len(values), ".", color=colour, alpha=0.45, markersize=5)
            axes.plot(ends[-1:], [place], "o", color=colour, markersize=8)
        axes.plot(ends, [place, place], "-", color=INK, linewidth=0.8, zorder=0)
    for (label, _), colour in zip(measures, COLOURS, strict=False):
        axes.plot([], [], "o", color=colour, label=label)
    axes.set_yticks(range(len(cells)), list(cells))
    axes.invert_yaxis()
    axes.set_xlabel("accuracy on samples that devices never had, % (small: each seed)")
    axes.grid(axis="x", alpha=0.25)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    return figure


def _svg(figure: Figure) -> str:
    made = io.StringIO()
    style: dict[Any, Any] = {
        "svg.hashsalt": "own",
        "svg.fonttype": "none",
        "font.size": 9,
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        ),
    }
    with matplotlib.rc_context(style):
        figure.set_facecolor(PAPER)
        figure.savefig(made, format="svg", metadata={"Date": None, "Creator": None})
    return made.getvalue()


if __name__ == "__main__":
    main()
