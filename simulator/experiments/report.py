"""``report.html``: one page about a run or several, with everything that it shows inside of it.

It follows from result.json alone, so it is the same whenever it is written.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure

from fleet.demo.report import html_table
from simulator.experiments.comparison import (
    COLUMNS,
    TARGET_COLUMNS,
    Comparison,
    FinishedRun,
    rows,
    target_rows,
    without_empty,
)
from simulator.experiments.plots import INK, PAPER, PLOTS, Look, add_legend, look

REPORT = "report.html"
PLOTS_FOLDER = "plots"

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --quiet: #57606a;
        --line: #d5dae0 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --paper: #14171b; --quiet: #9aa4af; --line: #343b43 } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem;
       color: var(--ink); background: var(--paper) }
h1 { font-size: 1.6rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p { max-width: 60rem }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: 1rem 0; padding: .6rem 0;
          border-bottom: 1px solid var(--line); position: sticky; top: 0; background: var(--paper) }
.legend span { display: inline-flex; align-items: center; gap: .45rem }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr));
         gap: 1rem }
figure { margin: 0 } figure svg { width: 100%; height: auto }
figure.wide { grid-column: 1 / -1; overflow-x: auto } figure.wide svg { min-width: 48rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .25rem .7rem; border-bottom: 1px solid var(--line) }
th { font-weight: 600 } th, td { white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
.scroll { overflow-x: auto } small, .quiet { color: var(--quiet) }
pre { overflow-x: auto; font-size: 13px }
"""
_SVG: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    # Names are the user's: a dollar in one of them is a dollar.
    "text.parse_math": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "grid.color": INK,
    "path.simplify": False,
}


def write_report(comparison: Comparison, out: Path) -> None:
    """``report.html``, which has one legend for all, and its plots one by one with their own."""
    folder = out / PLOTS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    images = {}
    for name, draw in PLOTS.items():
        with matplotlib.rc_context({**_SVG, "svg.hashsalt": name}):
            figure = draw(comparison)
            if figure is not None:
                images[name] = _svg(figure)
                add_legend(figure)
                (folder / f"{name}.svg").write_text(_svg(figure), encoding="utf-8")
            else:
                (folder / f"{name}.svg").unlink(missing_ok=True)
    (out / REPORT).write_text(page(comparison, images), encoding="utf-8")


def _svg(figure: Figure) -> str:
    made = io.StringIO()
    figure.savefig(made, format="svg", metadata={"Date": None, "Creator": None})
    return made.getvalue()


def _inline(image: str) -> str:
    """As a part of a page: in the page's colours and letters, without names that occur twice."""
    image = image[image.index("<svg") :]
    image = re.sub(r"<metadata>.*?</metadata>", "", image, flags=re.DOTALL)
    image = re.sub(r'<g id="[^"]*"', "<g", image)
    image = re.sub(r"\n\s*", "\n", image)
    image = image.replace(f"fill: {PAPER}", "fill: none").replace("'DejaVu Sans'", "inherit")
    return image.replace(INK, "var(--ink)")


def page(comparison: Comparison, images: Mapping[str, str]) -> str:
    """The page; ``images`` are its plots as SVG texts, by name."""
    runs = comparison.runs
    title = runs[0].experiment["name"] if len(runs) == 1 else f"{len(runs)} runs"
    figures = "".join(
        f"<figure{' class=wide' if name == 'costs' else ''}>{_inline(image)}</figure>"
        for name, image in images.items()
    )
    seeds = sorted({cell["seed"] for one in comparison.series for cell in one.cells})
    several = max((len(one.cells) for one in comparison.series), default=0) > 1
    spread = " Lines are means over seeds, bands reach from the lowest to the highest." * several
    bounds = not all(one.has_fleet for one in comparison.series)
    spread += " What needs no fleet is a thin line where it ends." * bounds
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>tinyfleet experiment: {_e(title)}</title>
<style>{_STYLE}</style></head><body>
<h1>{_e(title)}</h1>
{_about(runs)}
<p class="quiet">Accuracy is that of each device on its own held-out samples; the worst tenth is the
mean of the devices that do worst. Time is the fleet's own, bytes are all on the devices' lines.
Seed{"s" * (len(seeds) != 1)} {_e(", ".join(map(str, seeds)))}.{spread}</p>
<div class="legend">{_legend(comparison)}</div>
<h2>In the end</h2>
<div class="scroll">{html_table(*without_empty(COLUMNS, rows(comparison)))}</div>
{_until_target(comparison)}
{_troubles(comparison)}
<h2>On the way</h2>
<div class="plots">{figures}</div>
<h2>{"Experiment" if len(runs) == 1 else "Experiments"}</h2>
{"".join(_details(run) for run in runs)}
<p><small>For programs: {"result.json" if len(runs) == 1 else "comparison.json"}; for every round
and device the Parquet files of a run.</small></p>
</body></html>
"""


def _about(runs: Sequence[FinishedRun]) -> str:
    """A paragraph for each experiment; runs of a sweep have one in common."""
    told: dict[str, list[str]] = {}
    for run in runs:
        told.setdefault(_in_words(run.experiment), []).append(f"<b>{_e(run.label)}</b>")
    return "".join(
        f"<p>{', '.join(names) + ': ' if len(runs) > 1 else ''}{text}</p>\n"
        for text, names in told.items()
    )


def _in_words(experiment: Mapping[str, Any]) -> str:
    population = experiment["world"]["population"]
    boards = ", ".join(f"{100 * share:g} % {name}" for name, share in population["boards"].items())
    dataset = experiment["world"]["data"]["dataset"]["name"]
    facts = f"{population['devices']:,} devices ({boards}), data set {dataset}."
    return _e(f"{experiment['description'].strip()} {facts}".strip())


def _legend(comparison: Comparison) -> str:
    return "".join(
        f"<span>{_swatch(look(index))}{_e(one.label)}"
        f"{'' if one.has_fleet else ' <small>(no fleet)</small>'}</span>"
        for index, one in enumerate(comparison.series)
    )


def _swatch(of: Look) -> str:
    dashes = {"-": "", "--": "6 3", ":": "2 3", "-.": "6 3 2 3"}[of.dashes]
    return (
        '<svg width="28" height="10" aria-hidden="true"><line x1="0" y1="5" x2="28" y2="5" '
        f'stroke="{of.colour}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
    )


def _until_target(comparison: Comparison) -> str:
    if not comparison.target:
        return ""
    table = html_table(*without_empty(TARGET_COLUMNS, target_rows(comparison)))
    return (
        f"<h2>Until the mean accuracy of devices is {_e(comparison.target)}</h2>\n"
        f'<div class="scroll">{table}</div>\n<p class="quiet">Means over the seeds that got there; '
        "round 0 is what devices were made with.</p>"
    )


def _troubles(comparison: Comparison) -> str:
    found = [
        f"<li>{_e(one.label)}, seed {cell['seed']}: {_e(cell['state'])}: {_e(cell['reason'])}</li>"
        for one in comparison.series
        for cell in one.cells
        if cell["reason"]
    ]
    return f"<h2>What went wrong</h2>\n<ul>{''.join(found)}</ul>" if found else ""


def _details(run: FinishedRun) -> str:
    text = yaml.safe_dump(dict(_set(run.experiment)), sort_keys=False, allow_unicode=True)
    return f"<details><summary>{_e(run.label)}</summary><pre>{_e(text)}</pre></details>\n"


def _set(experiment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """All but the defaults, which every strategy has by now."""
    for name, value in experiment.items():
        if name != "defaults":
            yield name, value


def _e(text: str) -> str:
    return html.escape(str(text), quote=True)
