"""What privacy costs in accuracy: ε = 8, 4, 2 at 100 and 1,000 virtual devices.

Whole campaigns in virtual time: the firmware's own C clips, draws noise and masks, one
unmasker answers, the coordinator's rule makes the weights, the accountant sizes the noise. Data
are the digits, each device's through a sensor of its own.

    python -m benchmarks.privacy.accuracy [--devices 100,1000] [--seeds 3] [--workers 1]
        [--plan biases] [--out out/private-accuracy] [--figure FILE.svg]

What was finished stays in ``--out``; the same command goes on with it. δ is one in n^1.1.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fleet.cli._output import console, table
from fleet.privacy import Noise, epsilon, noise_multiplier
from simulator.experiments.api import run
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.plots import COLOURS
from simulator.experiments.runner import Source

ROOT = Path(__file__).parents[2]
EPSILONS = (8.0, 4.0, 2.0)
ROUNDS = 8
SET = 250
"""Devices that hide together where there are so many; a set has 256 at most."""
DELIVERED = 0.8
"""Noise of devices is sized for this share of a set: so many have to deliver."""
CLIP = {"clip": 200, "adaptive": {"quantile": 0.5, "rate": 0.2}}
PLACES = ("devices", "coordinator")
NONE = "none"


@dataclass(frozen=True)
class Row:
    """Accuracy after the last round, over seeds: of devices on their held-out samples."""

    plan: str
    devices: int
    noise: str
    """Who adds it; `none`."""
    epsilon: float | None
    """Against the coordinator where devices add it, else against the public."""
    public_epsilon: float | None
    noise_multiplier: float | None
    means: tuple[float, ...]
    worst_tenths: tuple[float, ...]


def delta_for(devices: int) -> float:
    return float(devices**-1.1)


def sets_of(devices: int) -> int:
    return max(1, devices // SET)


def least_devices(devices: int) -> int:
    return int(DELIVERED * min(devices, SET))


def strategies(devices: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Fields of a campaign by name; the same masks, rule and training in all of them."""
    delta = delta_for(devices)
    masking = {"least_devices": least_devices(devices), "spare": 0.0}
    same = {"coding": "masked", "masking": masking, "aggregation": {"rule": "fedavg"}}
    yield NONE, same
    for place in PLACES:
        for wanted in EPSILONS:
            noise = noise_multiplier(wanted, delta, ROUNDS)
            said = {**CLIP, "noise": place, "noise_multiplier": noise, "delta": delta}
            yield f"{place}-{wanted:g}", {**same, "privacy": said}


def experiment(devices: int, plan: str, seeds: int) -> ExperimentConfig:
    """The experiment with so many devices."""
    return ExperimentConfig.of(
        {
            "name": f"private-{plan}-{devices}",
            "model": {
                "onnx": "examples/digits/digits.onnx",
                "calibration": "examples/digits/calibration.npz",
                "plans": [f"benchmarks/privacy/accuracy-plans.json#{plan}"],
            },
            "world": {
                "population": {"devices": devices, "boards": {"stm32f407": 1}},
                "data": {
                    "dataset": "digits",
                    "samples_per_device": [20, 40],
                    "held_out_share": 0.1,
                    "held_out_devices": 10,
                    "sensor": {
                        "kind": "image",
                        "rotation_degrees": [15, 35],
                        "stroke": [-0.4, 0.4],
                        "gain": [0.5, 0.8],
                        "offset": [0, 0.15],
                    },
                },
            },
            "seeds": list(range(1, seeds + 1)),
            "evaluate": {"every": ROUNDS, "never_trained": False},
            "defaults": {"rounds": ROUNDS, "epochs": 3, "learning_rate": 0.05},
            "strategies": dict(strategies(devices)),
        },
        "accuracy",
    )


def public_epsilon(devices: int, multiplier: float, place: str) -> float:
    """ε of all rounds against those who see released weights alone: all sets' noise."""
    sets = sets_of(devices) if place == "devices" else 1
    # In clips; the norm's value moves both by the same.
    variance = round(multiplier**2 * 10**8)
    return epsilon(ROUNDS * Noise(variance * sets).rho(10**8, 0), delta_for(devices))


def rows_of(devices: int, plan: str, cells: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    """A row for each strategy, and one for the weights that devices were made with."""
    by_strategy: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        if cell["state"] != "finished":
            raise SystemExit(f"{cell['strategy']} with {devices} devices: {cell['reason']}")
        by_strategy.setdefault(cell["strategy"], []).append(cell)

    def figures(of: Sequence[Mapping[str, Any]], at: int, measure: str) -> tuple[float, ...]:
        return tuple(cell["curve"][at]["accuracy"][measure] for cell in of)

    first = by_strategy[NONE]
    made = (figures(first, 0, "mean"), figures(first, 0, "worst_tenth"))
    yield Row(plan, devices, "as made", None, None, None, *made)
    for name, of in by_strategy.items():
        place, _, wanted = name.partition("-")
        multiplier = noise_multiplier(float(wanted), delta_for(devices), ROUNDS) if wanted else None
        yield Row(
            plan,
            devices,
            place,
            float(wanted) if wanted else None,
            public_epsilon(devices, multiplier, place) if multiplier else None,
            multiplier,
            figures(of, -1, "mean"),
            figures(of, -1, "worst_tenth"),
        )


def spread(values: Sequence[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{deviation}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over ε, a line for each number of devices and place of the noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.9), layout="constrained")
    axes = figure.subplots()
    places = [*(str(int(one)) for one in EPSILONS)]
    for index, devices in enumerate(sorted({one.devices for one in rows})):
        colour = COLOURS[index]
        of = [one for one in rows if one.devices == devices]
        without = next(one for one in of if one.noise == NONE)
        axes.axhline(
            100 * statistics.mean(without.means),
            color=colour,
            linewidth=0.8,
            linestyle=":",
            label=f"{devices:,} devices, no noise",
        )
        for place, dashes in zip(PLACES, ("-", "--"), strict=True):
            line = [one for one in of if one.noise == place]
            means = [100 * statistics.mean(one.means) for one in line]
            low = [100 * (statistics.mean(one.means) - min(one.means)) for one in line]
            high = [100 * (max(one.means) - statistics.mean(one.means)) for one in line]
            axes.errorbar(
                places,
                means,
                yerr=[low, high],
                color=colour,
                linestyle=dashes,
                marker="o",
                markersize=4,
                capsize=2,
                label=f"{devices:,}, noise by {'devices' if place == 'devices' else 'coordinator'}",
            )
    made = [value for one in rows if one.noise == "as made" for value in one.means]
    axes.axhline(100 * statistics.mean(made), color="#777777", linewidth=0.8, label="as made")
    axes.set_xlabel("ε at δ = 1 / devices^1.1, all rounds together")
    axes.set_ylabel("mean accuracy of devices, %")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", default="100,1000")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--plan", choices=("biases", "small"), default="biases")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--out", type=Path, default=Path("out/private-accuracy"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)
    of = parser.parse_args()
    rows: list[Row] = []
    for devices in map(int, of.devices.split(",")):
        source = Source(experiment(devices, of.plan, of.seeds), ROOT)
        found = run(source, of.out / f"{of.plan}-{devices}", workers=of.workers, tell=_tell)
        rows += rows_of(devices, of.plan, found.result["cells"])
    columns = [
        "devices",
        "noise by",
        "ε",
        "ε of the public",
        "multiplier",
        "mean %",
        "worst tenth %",
    ]
    shown = [
        [
            str(one.devices),
            one.noise,
            "" if one.epsilon is None else f"{one.epsilon:g}",
            "" if one.public_epsilon is None else f"{one.public_epsilon:.2f}",
            "" if one.noise_multiplier is None else f"{one.noise_multiplier:.2f}",
            spread(one.means),
            spread(one.worst_tenths),
        ]
        for one in rows
    ]
    console().print(table(f"Update plan {of.plan}, {ROUNDS} rounds", columns, shown))
    if of.json:
        of.json.write_text(json.dumps([asdict(one) for one in rows], indent=1) + "\n")
    if of.figure:
        draw(rows, of.figure)


def _tell(cell: str, stage: str, done: int, total: int) -> None:
    if stage == "cells":
        console().print(f"{cell}: {done} of {total}")


if __name__ == "__main__":
    main()
