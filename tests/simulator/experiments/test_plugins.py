"""Strategies, data sets and machines of other packages are found by their entry points."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import FleetError
from simulator.experiments import ExperimentConfig
from simulator.experiments.config import strategy_kinds
from simulator.machines.registry import machine_kind, machine_names
from tests.simulator.experiments import tiny

MODULE = """
from typing import ClassVar, Literal
import numpy as np
from simulator.experiments.config import Strategy
from simulator.experiments.results import StrategyResult
from simulator.world.datasets.dataset import Dataset, Samples

class Nothing(Strategy):
    kind: Literal["nothing"] = "nothing"
    patience: int = 3

    def run(self, setting, seed):
        versions = (setting.scores(0, 0.0, setting.weights),)
        return StrategyResult("finished", versions=versions)

class Noise(Dataset):
    source: ClassVar[str] = "chance"
    name: Literal["noise"] = "noise"

    def load(self, folder):
        random = np.random.default_rng(1)
        x = random.uniform(0, 1, (60, 8, 8, 1)).astype(np.float32)
        return Samples(x, random.integers(0, 10, 60))

class Paper:
    def runs(self, board):
        return True

    def prepare(self, bundle, output):
        pass
"""
POINTS = """
[tinyfleet.strategies]
nothing = theirs:Nothing
[tinyfleet.datasets]
noise = theirs:Noise
[tinyfleet.machines]
paper = theirs:Paper
"""


@pytest.fixture
def _their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As pip would have installed it."""
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINTS)
    (tmp_path / "theirs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    strategy_kinds.cache_clear()
    yield
    strategy_kinds.cache_clear()


@pytest.mark.usefixtures("_their_package")
def test_what_another_package_brings_runs(build: Path, tmp_path: Path) -> None:
    world = {**tiny.content()["world"], "data": {"dataset": "noise"}}
    made = tiny.source(
        world=world,
        seeds=[1],
        defaults={},
        strategies={"theirs": {"kind": "nothing", "patience": 9}},
    )
    assert made.config.model_dump()["strategies"]["theirs"]["patience"] == 9
    assert ExperimentConfig.of(made.config.model_dump(mode="json")) == made.config
    tiny.run_experiment(made, tmp_path / "run", tiny.pool_with(1), build=build)
    assert (tmp_path / "run" / "cells" / "theirs-1" / "cell.json").exists()


@pytest.mark.usefixtures("_their_package")
def test_machines_of_another_package_are_found_by_name() -> None:
    assert {"host", "paper", "unicorn"} <= set(machine_names())
    assert type(machine_kind("paper")).__name__ == "Paper"


def test_machines_that_nobody_brings_are_refused_with_those_there_are() -> None:
    with pytest.raises(FleetError, match=r"no machine 'paper'.*host"):
        machine_kind("paper")
