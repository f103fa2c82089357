"""A campaign that personalizes, from its file to what devices' applications do in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from simulator.experiments.runner import run_experiment
from simulator.experiments.workers import pool_with
from tests.simulator.experiments import tiny

WAYS = {
    "per": {"way": "fedper", "local_rounds": 1},
    "babu": {"way": "fedbabu"},
    "last": {"way": "fine-tune-last", "tuning_epochs": 3},
}
MASKED = {
    "coding": "masked",
    "aggregation": {"rule": "fedavg"},
    "masking": {"least_devices": 3, "value_bound": 30_000},
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("personalize")
    plan = json.loads((tiny.DIGITS / "plans.json").read_text())["plans"]["small"]
    (folder / "plan.json").write_text(json.dumps({**plan, "name": "own", "personal": ["head"]}))
    whole = tiny.content()
    world = {**whole["world"], "data": {**whole["world"]["data"], "unseen_share": 0.25}}
    world["data"]["samples_per_device"] = [24, 32]
    source = tiny.source(
        model={**whole["model"], "plans": [str(folder / "plan.json")]},
        world=world,
        seeds=[7],
        strategies={
            **{name: {"personalize": way, "weighting": "uniform"} for name, way in WAYS.items()},
            "masked": {"personalize": WAYS["babu"], **MASKED},
        },
    )
    run_experiment(source, folder / "out", pool_with(1))
    return folder / "out"


def test_each_way_ends_with_what_devices_work_with(out: Path) -> None:
    cells = {cell["strategy"]: cell for cell in _result(out)["cells"] if cell["strategy"] in WAYS}
    reports = parquet.read_table(out / "reports.parquet").to_pylist()
    for name, cell in cells.items():
        assert (cell["state"], cell["reason"]) == ("finished", "")
        assert sum(cell["facts"]["kept"].values()) == 4
        newcomers = cell["facts"]["newcomers"]
        assert sorted(newcomers) == ([] if name == "per" else ["shared", "tuned"])
        assert all(one["devices"] == 2 for one in newcomers.values())
        shared, own = cell["curve"][-2:]
        assert own["training_round"] == shared["training_round"] + 1
        assert own["never_trained"] == shared["never_trained"]
        assert own["bytes_up"] >= shared["bytes_up"] > 0
        mine = [one for one in reports if one["strategy"] == name]
        kinds = {one["kind"] for one in mine}
        tunes = name != "per"
        wanted = {"train", "release", "personalize" if tunes else "train-local"}
        assert kinds == wanted
        last = [one for one in mine if one["kind"] == ("personalize" if tunes else "release")]
        for one in last:
            # A device works with the best of what it has measured.
            scores = {
                "shared": one["correct_before"],
                "personal": one["correct_after"],
                "local": one["correct_local"],
            }
            known = {way: score for way, score in scores.items() if score is not None}
            assert known[one["kept"]] == max(known.values())
            assert ("local" in known) == (name == "per")
        for one in mine:
            if one["kind"] in ("personalize", "train-local"):
                assert (one["train_samples"], one["coded_bytes"]) == (0, 0)


def test_masks_over_what_is_shared_change_no_bit(out: Path) -> None:
    cells = {cell["strategy"]: cell for cell in _result(out)["cells"]}
    masked, plain = cells["masked"], cells["babu"]
    assert masked["weights_sha256"] == plain["weights_sha256"]
    assert masked["facts"] == plain["facts"]
    assert masked["last"]["accuracy"] == plain["last"]["accuracy"]


def _result(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "result.json").read_text())
    return read


def test_what_nobody_shares_costs_no_bytes(out: Path) -> None:
    """FedPer and FedBABU send the body of the same plan, fine-tuning sends all of it."""
    reports = parquet.read_table(out / "reports.parquet").to_pylist()
    sent = {
        name: sum(
            one["coded_bytes"]
            for one in reports
            if (one["strategy"], one["kind"], one["round"]) == (name, "train", 1)
        )
        for name in WAYS
    }
    assert 0 < sent["per"] < sent["last"]
    assert 0 < sent["babu"] < sent["last"]
