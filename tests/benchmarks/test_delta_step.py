"""What the study of rounding deltas measures, on a small part of its fleet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.delta_step import Engines, Outcome, Task, Way, dealt_digits, digits, run


@pytest.fixture(scope="module")
def task() -> Iterator[Task]:
    with digits() as made:
        yield replace(made, rounds=1)


def outcome(task: Task, folder: Path, way: Way) -> Outcome:
    devices = dealt_digits(task, seed=1)
    mine = {name: one for name, one in devices.items() if one.plan == "small"}
    (last,) = [one for one in run(task, Engines(task, folder), mine, way, seed=1) if one]
    return last


def test_rounding_averages_out_with_a_seed_per_device_only(task: Task, tmp_path: Path) -> None:
    shared = outcome(task, tmp_path, Way(0, seed_per_device=False))
    own = outcome(task, tmp_path, Way(0, seed_per_device=True))
    # Eight devices: their mean is off by 1/√8 of what one of them is.
    assert own.rounding_error < shared.rounding_error / 2


def test_larger_steps_take_fewer_bytes_and_are_further_off(task: Task, tmp_path: Path) -> None:
    fine, coarse = (outcome(task, tmp_path, Way(coarser, True)) for coarser in (-2, 1))
    assert coarse.coded_bytes["small"] < 0.7 * fine.coded_bytes["small"]
    assert coarse.rounding_error > 2 * fine.rounding_error
