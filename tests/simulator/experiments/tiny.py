"""An experiment of a second, as users write one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from simulator.experiments import ExperimentConfig, Source
from simulator.experiments.runner import digest, run_experiment
from simulator.experiments.workers import pool_with

DIGITS = Path(__file__).parents[3] / "examples" / "digits"
TEXT = f"""
name: tiny
description: Four devices & three ways <to learn>
model:
  onnx: {DIGITS / "digits.onnx"}
  calibration: {DIGITS / "calibration.npz"}
  plans: ["{DIGITS / "plans.json"}#small"]
world:
  population: {{devices: 4, boards: {{stm32f407: 1.0}}}}
  data:
    dataset: digits
    samples_per_device: [9, 12]
    held_out_share: 0.2
    held_out_devices: 2
    sensor: {{kind: image, rotation_degrees: [20, 35]}}
seeds: [7, 3]
defaults: {{rounds: 2, learning_rate: 0.02}}
strategies:
  together: {{kind: centralized, plan: small}}
  fedavg: {{plans: [small]}}
  alone: {{kind: local-only, plan: small}}
target_accuracy: 0.5
"""
CELLS = [f"{strategy}-{seed}" for strategy in ("together", "fedavg", "alone") for seed in (7, 3)]


def content(**fields: Any) -> dict[str, Any]:
    """Of the file, with whole sections replaced."""
    return {**yaml.safe_load(TEXT), **fields}


def file(folder: Path, text: str = TEXT) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def source(**fields: Any) -> Source:
    return Source(ExperimentConfig.of(content(**fields)), Path())


def digest_of_run(out: Path, build: Path, workers: int | str = 1, **fields: Any) -> str:
    run_experiment(source(**fields), out, pool_with(workers), build=build)
    return digest(out)


def cell(out: Path, build: Path, workers: int | str = 1) -> dict[str, bytes]:
    """What is kept of a campaign with one seed, run by itself."""
    one = source(seeds=[7], strategies={"fedavg": {"plans": ["small"]}})
    run_experiment(one, out, pool_with(workers), build=build)
    return kept_cell(out)


def kept_cell(out: Path) -> dict[str, bytes]:
    """The same of a finished run."""
    return {path.name: path.read_bytes() for path in (out / "cells" / "fedavg-7").iterdir()}
