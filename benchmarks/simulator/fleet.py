"""Ten thousand devices in virtual time: a round in which all of them take ten steps.

Beside it, in the same run, the same round in Flower's own simulation engine with PyTorch clients of
the same model (`benchmarks.simulator.flower_engine`), on fewer clients, in an environment of its
own: ``--flower PYTHON`` names its interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet.cli._output import console, table
from fleet.demo.digits import example_folder
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.setting import Setting, build_firmware, setting_for
from simulator.experiments.strategies import Campaign
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


@contextmanager
def fleet(devices: int, rounds: int, workers: int) -> Iterator[Setting]:
    """All devices, powered on."""
    config = experiment(devices, rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        firmware = build_firmware(config, Path(), folder / "build", _quiet)
        (folder / "work").mkdir()
        with setting_for(
            config, 1, Path(), firmware, folder / "work", pool_with(workers), _quiet
        ) as setting:
            yield setting


def _quiet(stage: str, done: int, of: int) -> None:
    del stage, done, of


def measure_part(options: Namespace) -> dict[str, Any]:
    """Seconds, memory and device-rounds a second; Flower's beside them."""
    devices, rounds = int(options.devices), int(options.rounds)
    workers = len(os.sched_getaffinity(0))
    begun = time.perf_counter()
    with fleet(devices, rounds, workers) as setting:
        built = time.perf_counter()
        strategy = setting.config.strategies["fedavg"]
        assert isinstance(strategy, Campaign)
        result = strategy.run(setting, 1)
        seconds = time.perf_counter() - built
        memory = _proportional_bytes()
    assert [one.accepted for one in result.rounds] == [devices] * rounds, result.reason
    found: dict[str, Any] = {
        "devices": devices,
        "rounds": rounds,
        "processes": workers,
        "boot_seconds": round(built - begun, 1),
        "seconds": round(seconds, 1),
        "device_rounds_per_second": round(devices * rounds / seconds, 1),
        "virtual_seconds": round(result.rounds[-1].ends_seconds, 1),
        "memory_mb": memory >> 20,
        "weights_sha256": result.weights_sha256,
    }
    if options.flower:
        found["flower"] = _flower(options.flower)
        ours = found["device_rounds_per_second"]
        found["times_flower"] = round(ours / found["flower"]["client_rounds_per_second"], 1)
    return found


def _proportional_bytes() -> int:
    """Of this process and its children (PSS)."""
    total = 0
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    for process in (str(me), *children):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
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
    """Prints it as a table."""
    rows = [[name, value] for name, value in found.items() if not isinstance(value, dict)]
    rows += [[f"flower: {name}", str(value)] for name, value in found.get("flower", {}).items()]
    console().print(table("A fleet in virtual time", ["what", "figure"], rows))
