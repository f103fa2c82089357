"""Ten thousand devices in virtual time: rounds in which all of them take ten steps.

With ``--workers 1,2,ray`` the same is run with each, and has to come out byte for byte the same.

Beside it, in the same run, the same round in Flower's own simulation engine with PyTorch clients of
the same model (`benchmarks.simulator.flower_engine`), on fewer clients, in an environment of its
own: ``--flower PYTHON`` names its interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import parquet

from fleet.cli._output import console, table
from fleet.demo.digits import example_folder
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.runner import Source, digest, run_experiment
from simulator.experiments.workers import pool_with

ROOT = Path(__file__).parents[2]
STEPS = 10
FLOWER_CLIENTS = 500
FLOWER_ROUNDS = 3
"""The first one is left out: processes start in it."""


def experiment(devices: int, rounds: int) -> ExperimentConfig:
    """Every device has ten samples to train on and five that are held out."""
    digits = example_folder()
    return ExperimentConfig.model_validate(
        {
            "name": "fleet",
            "model": {
                "onnx": digits / "digits.onnx",
                "calibration": digits / "calibration.npz",
                "plans": [f"{digits / 'plans.json'}#middle"],
            },
            "world": {
                "population": {"devices": devices, "boards": {"stm32f407": 1.0}},
                "data": {"dataset": {"name": "digits"}, "samples_per_device": STEPS * 3 // 2},
                "links": {"good": {"latency_seconds": [0.02, 0.1]}},
            },
            "evaluate": {"every": 0},
            "strategies": {
                "fedavg": {"rounds": rounds, "learning_rate": 0.02, "min_devices": devices}
            },
        }
    )


@dataclass
class Stages:
    """Hears of a run's stages: when each was reached, and what memory all processes had then."""

    at: dict[tuple[str, int], float] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)
    """Bytes, by rounds that were done."""

    def tell(self, cell: str, stage: str, done: int, of: int) -> None:
        del cell, of
        self.at[stage, done] = time.perf_counter()
        if stage == "rounds":
            self.memory[done] = proportional_bytes()
            passed = self.at[stage, done] - self.at[stage, 0]
            told = f"{done} rounds done: {passed:.1f} s, {self.memory[done] >> 20} MB"
            print(told, file=sys.stderr, flush=True)


def measure(devices: int, rounds: int, workers: str, folder: Path) -> dict[str, Any]:
    """One run of the experiment, as users run one."""
    stages = Stages()
    before = cpu_seconds()
    out = folder / f"workers-{workers.replace('/', '-')}"
    result = run_experiment(
        Source(experiment(devices, rounds), Path()),
        out,
        pool_with(workers),
        stages.tell,
        folder / "build",
    )
    ended = time.perf_counter()
    (cell,) = result["cells"]
    ends = parquet.read_table(out / "rounds.parquet", columns=["accepted", "ends_seconds"])
    assert ends["accepted"].to_pylist() == [devices] * rounds, cell["reason"]
    booted = stages.at["devices", devices]
    seconds = ended - booted
    return {
        "workers": workers,
        "boot_seconds": round(booted - stages.at["devices", 0], 1),
        "seconds": round(seconds, 1),
        # Ray's processes go on.
        "cpu_seconds": None if workers.startswith("ray") else round(cpu_seconds() - before, 1),
        "device_rounds_per_second": round(devices * rounds / seconds, 1),
        "virtual_seconds": round(ends["ends_seconds"][-1].as_py(), 1),
        "memory_mb": max(stages.memory.values()) >> 20,
        "memory_mb_by_rounds_done": {done: of >> 20 for done, of in stages.memory.items()},
        "seconds_by_rounds_done": {
            done: round(stages.at["rounds", done] - booted, 1) for done in stages.memory
        },
        "load": round(os.getloadavg()[2], 1),
        "weights_sha256": cell["weights_sha256"],
        "digest": digest(out),
    }


def cpu_seconds() -> float:
    """Of this process and those that it has started, and that have ended."""
    return sum(os.times()[:4])


def measure_part(options: Namespace) -> dict[str, Any]:
    """Seconds, memory and device-rounds a second with each kind of workers; Flower's beside them.

    Results have to be the same byte for byte, whoever has the devices.
    """
    devices, rounds = int(options.devices), int(options.rounds)
    kinds = (options.workers or str(len(os.sched_getaffinity(0)))).split(",")
    with tempfile.TemporaryDirectory() as folder:
        runs = [measure(devices, rounds, one, Path(folder)) for one in kinds]
    found: dict[str, Any] = {"devices": devices, "rounds": rounds, "runs": runs}
    if len(runs) > 1:
        found["equal"] = len({one["digest"] for one in runs}) == 1
    if options.flower:
        found["flower"] = _flower(options.flower)
        ours = runs[0]["device_rounds_per_second"]
        found["times_flower"] = round(ours / found["flower"]["client_rounds_per_second"], 1)
    return found


def proportional_bytes() -> int:
    """Of this process and all below it: what each has alone, and its part of what they share."""
    processes, total = [str(os.getpid())], 0
    while processes:
        folder = Path("/proc") / processes.pop()
        try:
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
            for thread in (folder / "task").iterdir():
                processes += (thread / "children").read_text().split()
        except OSError:
            continue  # it has ended
    return total


def _flower(python: str) -> dict[str, Any]:
    command = [python, "-m", "benchmarks.simulator.flower_engine"]
    command += ["--clients", str(FLOWER_CLIENTS), "--rounds", str(FLOWER_ROUNDS)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLWR_TELEMETRY_ENABLED": "0"}
    told = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = json.loads(told.stdout.splitlines()[-1])["round_seconds"][1:]
    return {
        "clients": FLOWER_CLIENTS,
        "round_seconds": [round(one, 2) for one in seconds],
        "client_rounds_per_second": round(FLOWER_CLIENTS * len(seconds) / sum(seconds), 1),
    }


def print_part(found: dict[str, Any]) -> None:
    """Prints it as tables."""
    screen = console()
    for run in found["runs"]:
        rows = [[name, value] for name, value in run.items() if not isinstance(value, dict)]
        title = f"{found['devices']:,} devices in virtual time, rounds: {found['rounds']}"
        screen.print(table(title, ["what", "figure"], rows))
    rows = [[name, str(value)] for name, value in found.items() if name != "runs"]
    screen.print(table("All of it", ["what", "figure"], rows))
