"""Masked and private campaigns in virtual time, with the devices' own C."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.experiments.runner import run_experiment
from simulator.experiments.workers import pool_with
from tests.simulator.experiments import tiny

MASKED: dict[str, Any] = {
    "plans": ["small"],
    "coding": "masked",
    "aggregation": {"rule": "fedavg"},
    "masking": {"least_devices": 3, "value_bound": 30_000},
}
LOUD = {"clip": 500, "noise_multiplier": 1.0, "delta": 1e-2}
QUIET = {"clip": 100_000, "noise": "coordinator", "noise_multiplier": 1e-6, "delta": 1e-2}
STRATEGIES: dict[str, dict[str, Any]] = {
    "plain": {"plans": ["small"], "weighting": "uniform"},
    "masked": MASKED,
    "by-devices": {**MASKED, "privacy": LOUD},
    "by-coordinator": {**MASKED, "privacy": {**LOUD, "noise": "coordinator"}},
    "next-to-nothing": {**MASKED, "privacy": QUIET},
}


def run(out: Path, build: Path, workers: int = 1, **strategies: dict[str, Any]) -> dict[str, Any]:
    """What each strategy has made, with one seed."""
    one = tiny.source(seeds=[7], strategies=strategies)
    run_experiment(one, out, pool_with(workers), build=build)
    cells = json.loads((out / "result.json").read_text())["cells"]
    assert all(cell["state"] == "finished" for cell in cells)
    return {cell["strategy"]: cell for cell in cells}


@pytest.mark.slow
def test_masks_change_no_bit_and_noise_does(build: Path, tmp_path: Path) -> None:
    cells = run(tmp_path / "run", build, **STRATEGIES)
    made = {name: cell["weights_sha256"] for name, cell in cells.items()}
    assert made["plain"] == made["masked"]
    assert len(set(made.values())) == 4
    plain, quiet = (
        cells[name]["last"]["accuracy"]["mean"] for name in ("plain", "next-to-nothing")
    )
    assert abs(plain - quiet) < 0.1, "a deviation of a tenth of a step is no matter"


@pytest.mark.slow
def test_a_private_run_replays_on_any_number_of_processes(build: Path, tmp_path: Path) -> None:
    noisy = {name: STRATEGIES[name] for name in ("by-devices", "by-coordinator")}
    once = run(tmp_path / "once", build, **noisy)
    assert run(tmp_path / "again", build, workers=2, **noisy) == once
