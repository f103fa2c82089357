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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from simulator.errors import ExperimentError
from simulator.experiments.config import ExperimentConfig
from simulator.experiments.results import Cell, StrategyResult, write_json
from simulator.experiments.setting import MakePool, Tell, build_firmware, setting_for
from simulator.experiments.tables import CellTables, write_tables
from simulator.virtual.population import Firmware

FORMAT = "tinyfleet-experiment/1"
RESULT, RUN, EXPERIMENT, CELLS, CELL, BUILD = (
    "result.json",
    "run.json",
    "experiment.json",
    "cells",
    "cell.json",
    "build",
)


ALL_CELLS = "all cells"
"""Whose stage it is when it is nobody's alone."""
CELLS_DONE = "cells"
"""The stage that a cell's end belongs to."""
TellOfCell = Callable[[str, str, int, int], None]
"""Called with a cell, what is done for it, how much of that, and how much there is."""


@dataclass(frozen=True)
class Source:
    """An experiment, and where the paths in it begin."""

    config: ExperimentConfig
    folder: Path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Of a file. Raises: ExperimentError naming the field."""
        return cls(ExperimentConfig.read(path), path.resolve().parent)

    @classmethod
    def of_run(cls, out: Path) -> Self:
        """What a run's folder has been made of. Raises: ExperimentError."""
        path, run = out / EXPERIMENT, out / RUN
        if not path.exists() or not run.exists():
            raise ExperimentError(f"{out} isn't the folder of a run: no {EXPERIMENT} or no {RUN}")
        return cls(ExperimentConfig.of(_read(path), str(path)), Path(_read(run)["folder"]))

    def with_seeds(self, seeds: Sequence[int]) -> Self:
        """With other seeds. Raises: ExperimentError."""
        return replace(self, config=self.config.with_seeds(seeds))


def run_experiment(
    source: Source,
    out: Path,
    make_pool: MakePool,
    tell: TellOfCell = lambda cell, stage, done, of: None,
    build: Path | None = None,
) -> dict[str, Any]:
    """Run all cells that ``out`` doesn't have yet; returns what result.json holds.

    Args:
        source: the experiment.
        out: folder of the run; made where it isn't there.
        make_pool: where devices run; the result doesn't depend on it.
        tell: hears of a cell's stages, of how much of one is done, and of how much there is.
        build: folder for firmware that several runs have in common; left out: one of its own.

    Raises: ExperimentError where ``out`` has another experiment's results.
    """
    config = source.config
    _claim(out, source)
    firmware = build_firmware(
        config, source.folder, build or out / BUILD, lambda *args: tell(ALL_CELLS, *args)
    )
    seconds: dict[str, float] = {}
    cells = []
    for strategy in config.strategies:
        for seed in config.seeds:
            name = f"{strategy}-{seed}"
            kept = out / CELLS / name
            if not (kept / CELL).exists():
                started = time.perf_counter()
                kept.mkdir(parents=True, exist_ok=True)
                with CellTables(kept, strategy, seed) as tables:
                    result = _run_cell(
                        source, strategy, seed, firmware, tables, make_pool, _of(tell, name)
                    )
                write_json(kept / CELL, result.to_json())
                seconds[name] = round(time.perf_counter() - started, 3)
            cells.append((Cell(strategy, seed, _kept(kept / CELL)), kept))
            tell(name, CELLS_DONE, len(cells), len(config.strategies) * len(config.seeds))
    result_json = {
        "format": FORMAT,
        "experiment": config.model_dump(mode="json"),
        "cells": [cell.summary(config.target_accuracy) for cell, _ in cells],
    }
    write_tables(out, cells)
    write_json(out / RESULT, result_json)
    before = _read(out / RUN)
    write_json(
        out / RUN,
        {**before, **_facts_of_run(), "cell_seconds": {**before["cell_seconds"], **seconds}},
    )
    return result_json


def _of(tell: TellOfCell, cell: str) -> Tell:
    return lambda stage, done, of: tell(cell, stage, done, of)


def _run_cell(
    source: Source,
    strategy: str,
    seed: int,
    firmware: dict[str, Firmware],
    tables: CellTables,
    make_pool: MakePool,
    tell: Tell,
) -> StrategyResult:
    work = Path(tempfile.mkdtemp(prefix="tinyfleet-"))
    try:
        way = source.config.strategies[strategy]
        with setting_for(
            source.config,
            seed,
            source.folder,
            firmware,
            work,
            tables,
            make_pool,
            tell,
            way.needs_keys,
        ) as setting:
            return way.run(setting, seed)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _claim(out: Path, source: Source) -> None:
    """What was begun in a folder is gone on with, or refused where it is something else."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = source.config.model_dump(mode="json")
    path = out / EXPERIMENT
    # As texts: the order of boards says which devices have them.
    if path.exists() and json.dumps(_read(path)) != json.dumps(wanted):
        raise ExperimentError(
            f"{out} has results of another experiment, or of other seeds or settings; give "
            "another --out, or remove it"
        )
    write_json(path, wanted)
    run = _read(out / RUN) if (out / RUN).exists() else {"cell_seconds": {}}
    write_json(out / RUN, {**run, "folder": str(source.folder)})


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(f"{path}: can't be read ({error}); remove it to run anew") from None


def _kept(path: Path) -> StrategyResult:
    try:
        return StrategyResult.from_json(_read(path))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ExperimentError(f"{path}: isn't a cell's result; remove it to run anew") from None


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


def decided_by_seeds(out: Path) -> dict[str, str]:
    """SHA-256 of each file of a run that only the seeds decide: result.json and the tables."""
    found = sorted([out / RESULT, *out.glob("*.parquet")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def digest(out: Path) -> str:
    """SHA-256 over all of them."""
    return hashlib.sha256(json.dumps(decided_by_seeds(out)).encode()).hexdigest()
