"""Runs experiments: each cell once, whatever happens on the way.

A cell's result is on disk when it is done, and a run that was interrupted goes on with the others;
what comes out is the same byte by byte. docs/howto/experiment.md says what lies where.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import ExperimentError
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.results import Cell, StrategyResult, write_json, write_tables
from simulator.experiments.setting import MakePool, Tell, build_firmware, setting_for
from simulator.virtual.population import Firmware

FORMAT = "tinyfleet-experiment/1"
RESULT, RUN, EXPERIMENT, CELLS, BUILD = (
    "result.json",
    "run.json",
    "experiment.json",
    "cells",
    "build",
)


@dataclass(frozen=True)
class Source:
    """An experiment, and where the paths in it begin."""

    config: ExperimentConfig
    folder: Path

    @classmethod
    def read(cls, path: Path) -> Source:
        """Of a file. Raises: ExperimentError naming the field."""
        return cls(ExperimentConfig.read(path), path.resolve().parent)


def run_experiment(
    source: Source,
    out: Path,
    make_pool: MakePool,
    seeds: Sequence[int] | None = None,
    tell: Callable[[str, str, int, int], None] = lambda cell, stage, done, of: None,
) -> dict[str, Any]:
    """Run all cells that ``out`` doesn't have yet; returns what result.json holds.

    Args:
        source: the experiment.
        out: folder of the run; made where it isn't there.
        make_pool: where devices run; the result doesn't depend on it.
        seeds: other ones than the experiment's.
        tell: hears of a cell's stages, of how much of one is done, and of how much there is.

    Raises: ExperimentError where ``out`` has another experiment's results.
    """
    config = source.config
    if seeds is not None:
        config = config.model_copy(update={"seeds": tuple(seeds)})
    _claim(out, config)
    firmware = build_firmware(
        config, source.folder, out / BUILD, lambda *args: tell("all cells", *args)
    )
    seconds: dict[str, float] = {}
    cells = []
    for strategy in config.strategies:
        for seed in config.seeds:
            name = f"{strategy}-{seed}"
            kept = out / CELLS / f"{name}.json"
            if not kept.exists():
                started = time.perf_counter()
                result = _run_cell(
                    source.folder, config, strategy, seed, firmware, make_pool, _of(tell, name)
                )
                kept.parent.mkdir(exist_ok=True)
                write_json(kept, result.to_json())
                seconds[name] = round(time.perf_counter() - started, 3)
            cells.append(Cell(strategy, seed, StrategyResult.from_json(_read(kept))))
    result_json = {
        "format": FORMAT,
        "experiment": config.model_dump(mode="json"),
        "cells": [cell.summary(config.target_accuracy) for cell in cells],
    }
    write_tables(out, cells)
    write_json(out / RESULT, result_json)
    write_json(out / RUN, {**_facts_of_run(), "cell_seconds": seconds})
    return result_json


def _of(tell: Callable[[str, str, int, int], None], cell: str) -> Tell:
    return lambda stage, done, of: tell(cell, stage, done, of)


def _run_cell(
    folder: Path,
    config: ExperimentConfig,
    strategy: str,
    seed: int,
    firmware: dict[str, Firmware],
    make_pool: MakePool,
    tell: Tell,
) -> StrategyResult:
    work = Path(tempfile.mkdtemp(prefix="tinyfleet-"))
    try:
        with setting_for(config, seed, folder, firmware, work, make_pool, tell) as setting:
            return config.strategies[strategy].run(setting, seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _claim(out: Path, config: ExperimentConfig) -> None:
    """What was begun in a folder is gone on with, or refused where it is something else."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = config.model_dump(mode="json")
    path = out / EXPERIMENT
    if path.exists() and _read(path) != wanted:
        raise ExperimentError(
            f"{out} has results of another experiment, or of other seeds or settings; give "
            "another --out, or remove it"
        )
    write_json(path, wanted)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: can't be read ({error}); remove it to run anew") from None


def _facts_of_run() -> dict[str, Any]:
    return {
        "commit": _commit(),
        "python": sys.version.split()[0],
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _commit() -> str:
    """Of the code, where it is a checkout; with `+` where files have changed since."""
    here = Path(__file__).resolve().parent
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--abbrev=12"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


def digest(out: Path) -> str:
    """SHA-256 over what the seeds decide: result.json and the tables."""
    hashed = hashlib.sha256()
    for path in sorted([out / RESULT, *out.glob("*.parquet")]):
        hashed.update(path.name.encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()
