"""Figures of several seeds beside each other, on made-up curves."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.experiments.comparison import (
    COLUMNS,
    Comparison,
    FinishedRun,
    Spread,
    mean_accuracy,
    quantity,
    rows,
    target_rows,
    without_empty,
)


def point(number: int, mean: float, *, seconds: float = 0.0, **figures: float) -> dict[str, Any]:
    accuracy = {"devices": 2, "mean": mean, "median": mean, "worst_tenth": mean / 2}
    names = ("bytes_up", "bytes_down", "milliwatt_hours", "flash_erases", "most_flash_wear")
    costs = dict.fromkeys(names, 0)
    return {
        "training_round": number,
        "seconds": seconds,
        "accuracy": accuracy,
        "never_trained": None,
        **costs,
        **figures,
    }


def cell(strategy: str, seed: int, *curve: dict[str, Any], reason: str = "") -> dict[str, Any]:
    return {
        "strategy": strategy,
        "seed": seed,
        "has_fleet": strategy == "fleet",
        "state": "failed" if reason else "finished",
        "reason": reason,
        "last": curve[-1] if curve else None,
        "curve": list(curve),
    }


def made_up(name: str = "made-up", description: str = "") -> FinishedRun:
    """A fleet that gets to 80 % with one of two seeds, and a bound without a fleet."""
    cells = [
        cell("fleet", 1, point(0, 0.4), point(2, 0.8, seconds=20.0, bytes_up=2000)),
        cell(
            "fleet",
            2,
            point(0, 0.5),
            point(1, 0.6, seconds=10.0, bytes_up=900),
            point(2, 0.7, seconds=40.0, bytes_up=1000),
        ),
        cell("bound", 1, point(0, 0.4), point(1, 0.9)),
        cell("broken", 1, reason="nobody came"),
    ]
    experiment = {
        "name": name,
        "description": description,
        "target_accuracy": 0.8,
        "strategies": {"broken": {}, "bound": {}, "fleet": {}},
        "world": {
            "population": {"devices": 2, "boards": {"stm32f407": 1.0}},
            "data": {"dataset": {"name": "digits"}},
        },
    }
    return FinishedRun(name, {"experiment": experiment, "cells": cells})


def test_a_curve_has_the_rounds_that_every_seed_has() -> None:
    fleet = next(one for one in Comparison((made_up(),)).series if one.strategy == "fleet")
    assert fleet.rounds == [0, 2]
    means = fleet.over_rounds(mean_accuracy)
    assert means == [pytest.approx(Spread(0.45, 0.4, 0.5)), pytest.approx(Spread(0.75, 0.7, 0.8))]
    assert fleet.last(quantity("bytes_up")) == Spread(1500.0, 1000.0, 2000.0)


def test_tables_say_what_seeds_have_in_common() -> None:
    columns, shown = without_empty(COLUMNS, rows(Comparison((made_up(),))))
    assert "never trained" not in columns
    by_name = {row[0]: dict(zip(columns, row, strict=True)) for row in shown}
    assert by_name["fleet"]["accuracy"] == "75.0 % (70.0 to 80.0)"
    assert by_name["fleet"]["bytes up"] == "1,500"
    assert by_name["bound"]["accuracy"] == "90.0 %"
    assert by_name["bound"]["bytes up"] == ""
    assert by_name["broken"]["state"] == "failed"
    assert by_name["broken"]["accuracy"] == ""


def test_the_target_is_reached_by_the_seeds_that_got_there() -> None:
    by_name = {row[0]: row[1:] for row in target_rows(Comparison((made_up(),)))}
    assert by_name["fleet"] == ["1 of 2", "2", "20", "2,000", "0", "0"]
    assert by_name["bound"] == ["1 of 1", "1", "", "", "", ""]
    assert by_name["broken"][0] == "0 of 1"
    lower = {row[0]: row[1:3] for row in target_rows(Comparison((made_up(),), 0.55))}
    assert lower["fleet"] == ["2 of 2", "1.5"]
