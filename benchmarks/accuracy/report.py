"""The page and the plots: tables of mean and spread over seeds from the kept runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from benchmarks.accuracy.study import METHODS
from benchmarks.accuracy.tasks import PUBLISHED, SEARCHED, TASKS

_HEAD = """# Accuracy of training on the device's arithmetic

`device arithmetic` is the C engine as host library, sample by sample at the learning rate divided
by the size of a batch; its bits are those of the ARM image (`--image-steps` compares them). `float
SGD` trains the same tensors of the same network in PyTorch, batch by batch, with the saturation of
activations but no rounding anywhere. Both take the same samples in the same order, and learning
rates from the same cosine; there is no momentum, no augmentation, and no choice of the best epoch:
what is shown is the accuracy on the test samples after the last one. Seeds draw heads and orders.

`device, int8 state` keeps trained weights in one byte and rounds every step to it at random; it is
what lets plan 148kb fit into 256 KB, where two bytes a weight (q8.8) don't.

`TinyEngine's arithmetic` simulates what its kernels do: int8 weights less a float step, converted
as C does (cut off towards zero, wrapped), weight gradients of the codes without their zero point,
and an int8 head. (Its logits are left wide, which is kinder.) `no QAS` leaves gradients in integer
steps, with float master weights. Both get the rate that gives the best test accuracy with the first
seed, of 4 that are 4 times apart. A run whose loss stays above that of guessing for three epochs
counts as diverged and is ended there.

`searched` is the plan that `tinyfleet plan` chooses for 256 KB of its own, from the training
photos alone ([how](../howto/choose-a-plan.md#the-last-choice)): the one of the highest sum. With
148kb among the candidates it chooses 148kb, which ties and is smaller. Both choices were fixed
before the test photos were looked at. `single-run` is what it chose before, when it trained each
finalist once and took the lowest loss. `pointwise` is written by hand after what the search shows
of contributions: all first pointwise layers of the last seven blocks, and 22 biases; with the link
of today it takes 3,688 bytes more than 256 KB. The others fit, with int8 states only. That 201
photos of 137 photographers tell plans apart by less than two points is luck.

Cells: mean ± standard deviation over seeds in percent, in brackets the number of seeds and how many
of them diverged. Differences are of the same seeds, in points; wanted are at most 1.5 below float.
Where there are fewer than 5 seeds, the others are still to be run: the commands below add them.
"""

_TAIL = """
## Reproduce

```sh
pip install torch==2.13.0
python -m benchmarks.accuracy flowers96 --methods float,device,tinyengine,unscaled
python -m benchmarks.accuracy flowers96 --plans 49kb --image-steps 3   # bits of the ARM image
python -m benchmarks.accuracy report                                   # this page again
```

The other data sets are called alike. Runs are kept in `docs/results/accuracy/*.json`, epoch by
epoch, and aren't repeated; the data lies outside of the repository (`TINYFLEET_SHARED`).
"""


@dataclass(frozen=True)
class Cell:
    """Accuracy over seeds of one plan by one method, in percent."""

    by_seed: dict[int, float]
    start: float
    diverged: int

    @property
    def mean(self) -> float:
        return float(np.mean(list(self.by_seed.values())))

    def __str__(self) -> str:
        notes = [f"{len(self.by_seed)}"]
        if self.diverged:
            notes.append(f"{self.diverged} diverged")
        return f"{_with_spread(list(self.by_seed.values()), '.1f')} ({', '.join(notes)})"


def _with_spread(values: list[float], form: str) -> str:
    """Mean and, of several, the standard deviation."""
    mean = f"{np.mean(values):{form}}"
    return f"{mean} ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else mean


def difference(ours: Cell, theirs: Cell) -> str:
    """Points by which ``ours`` is above, over the seeds of both; they share heads and orders."""
    common = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
    gaps = [ours.by_seed[seed] - theirs.by_seed[seed] for seed in common]
    return _with_spread(gaps, "+.1f") if gaps else ""


def cells(runs: Iterable[dict[str, Any]]) -> dict[tuple[str, str], Cell]:
    """(plan, method) → accuracy after the last epoch; owners of samples are averaged per seed.

    A seed that has been run for some of the owners only doesn't count.
    """
    grouped: dict[tuple[str, str], dict[int, list[dict[str, Any]]]] = {}
    for run in runs:
        seeds = grouped.setdefault((run["plan"], run["method"]), {})
        seeds.setdefault(run["seed"], []).append(run)
    for seeds in grouped.values():
        owners = max(len(of) for of in seeds.values())
        for seed in [seed for seed, of in seeds.items() if len(of) < owners]:
            del seeds[seed]
    return {
        key: Cell(
            {
                seed: 100 * float(np.mean([run["end"] for run in seeds[seed]]))
                for seed in sorted(seeds)
            },
            100 * float(np.mean([run["start"] for of in seeds.values() for run in of])),
            sum(any(run["diverged"] for run in of) for of in seeds.values()),
        )
        for key, seeds in grouped.items()
    }


def write_report(folder: Path) -> None:
    """Writes ``FOLDER.md`` and a plot per data set into ``folder`` from the JSON files there.

    Raises SystemExit where there are none.
    """
    parts = [_HEAD]
    for name in TASKS:
        file = folder / f"{name}.json"
        if not file.exists():
            continue
        content = json.loads(file.read_text("utf-8"))
        found = cells(content["runs"])
        if found:
            parts.append(_section(name, content, found, folder.name))
            _plot(found, content, folder / f"{name}.png")
    if len(parts) == 1:
        raise SystemExit(
            f"{folder} has no results; run `python -m benchmarks.accuracy DATASET` first"
        )
    folder.with_suffix(".md").write_text("\n".join([*parts, _TAIL]), "utf-8")


def _ordered(found: dict[tuple[str, str], Cell]) -> tuple[list[str], list[str]]:
    order = ["head", "bias", "sparse", *PUBLISHED, *SEARCHED, "pointwise", "last12", "full"]
    plans = sorted({plan for plan, _ in found}, key=order.index)
    methods = [method for method in METHODS if any(m == method for _, m in found)]
    return plans, methods


def _section(
    name: str, content: dict[str, Any], found: dict[tuple[str, str], Cell], folder: str
) -> str:
    plans, methods = _ordered(found)
    schedule = content["schedule"]
    start = np.mean([cell.start for cell in found.values()])
    lines = [
        f"\n## {name}\n",
        f"{content['title'][0].upper()}{content['title'][1:]}. {schedule['epochs']} epochs, "
        f"rate {schedule['rate']:g}, batches of {schedule['batch']}; "
        f"{start:.1f} % before training.\n",
        "| plan | " + " | ".join(METHODS[m].title for m in methods) + " | device less float |",
        "|---|" + "---|" * (len(methods) + 1),
    ]
    for plan in plans:
        row = [str(found[plan, m]) if (plan, m) in found else "" for m in methods]
        # A plan that fits with an int8 state only has no other figure of the device.
        ours = found.get((plan, "device"), found.get((plan, "int8-state")))
        theirs = found.get((plan, "float"))
        # Nothing is told by how far one is above a run that diverged.
        gap = difference(ours, theirs) if ours and theirs and not theirs.diverged else ""
        lines.append(f"| {plan} | " + " | ".join([*row, gap]) + " |")
    if compared := _against_published(found):
        lines.append(f"\n{compared}")
    for key, tried in content["rates"].items():
        method, plan = key.split()
        shown = ", ".join(f"{rate} {100 * end:.1f} %" for rate, end in tried.items())
        lines.append(
            f"\nRates tried for {METHODS[method].title}, plan {plan}, first seed: {shown}."
        )
    lines.append(f"\n![Accuracy by plan and method on {name}]({folder}/{name}.png)")
    return "\n".join(lines)


def _against_published(found: dict[tuple[str, str], Cell]) -> str:
    """What plans for 256 KB have over the largest published one, seed by seed."""
    theirs = found.get((PUBLISHED[-1], "int8-state"))
    parts = []
    for plan in (*SEARCHED, "pointwise"):
        ours = found.get((plan, "int8-state"))
        if theirs and ours:
            seeds = sorted(ours.by_seed.keys() & theirs.by_seed.keys())
            gaps = (f"{ours.by_seed[seed] - theirs.by_seed[seed]:+.1f}" for seed in seeds)
            parts.append(f"{plan} {difference(ours, theirs)} ({', '.join(gaps)})")
    return f"Above {PUBLISHED[-1]} with int8 states, by seed: {'; '.join(parts)}." if parts else ""


def _plot(found: dict[tuple[str, str], Cell], content: dict[str, Any], path: Path) -> None:
    plans, methods = _ordered(found)
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / len(methods)
    for place, method in enumerate(methods):
        for index, plan in enumerate(plans):
            cell = found.get((plan, method))
            if cell is None:
                continue
            x = index + (place - (len(methods) - 1) / 2) * width
            axes.bar(x, cell.mean, 0.9 * width, color=f"C{place}", alpha=0.55)
            values = list(cell.by_seed.values())
            axes.plot([x] * len(values), values, ".", color=f"C{place}", markersize=4)
    handles = [plt.Rectangle((0, 0), 1, 1, color=f"C{i}", alpha=0.55) for i in range(len(methods))]
    titles = [METHODS[method].title for method in methods]
    axes.legend(handles, titles, fontsize=8, ncols=len(methods), loc="lower center")
    axes.set_xticks(range(len(plans)), plans)
    # Below half of the best there are only runs that went wrong.
    axes.set_ylim(bottom=max(0.0, max(cell.mean for cell in found.values()) / 2 - 10))
    axes.set_ylabel("test accuracy, %")
    axes.set_title(content["title"], fontsize=9)
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)
