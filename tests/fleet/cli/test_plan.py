"""`tinyfleet plan` as users call it: the plan it writes compiles, refusals are one message."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.bundle import load_bundle
from simulator.machines.measure import measure
from simulator.world.digits import deal
from tests.fleet.cli.conftest import Run

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits"
MODEL, CALIBRATION = EXAMPLE / "digits.onnx", EXAMPLE / "calibration.npz"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of one device, through its own sensor."""
    (share,) = deal(["one"], 1)
    path = tmp_path_factory.mktemp("digits") / "data.npz"
    x = share.x.transpose(0, 3, 1, 2).astype(np.float32)
    np.savez(path, x=x, y=share.y.astype(np.int64))
    return path


def arguments(data: Path, out: Path) -> list[object]:
    return [
        "plan", MODEL, "--board", "stm32f407", "--data", data, "--calibration", CALIBRATION,
        "--last", 3, "--epochs", 1, "--final-epochs", 2, "--final-seeds", 2, "--out", out,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_plan_that_is_written_compiles_within_the_limit(
    tinyfleet: Run, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "plans.json"
    sram = 19_500
    instructions = 1_200_000
    limits = ["--sram-bytes", sram, "--uplink-bytes", 1_500, "--instructions", instructions]
    (tmp_path / "own.json").write_text('{"name": "own", "biases": {"last": 1}}')
    own = ["--candidate", tmp_path / "own.json"]
    made = tinyfleet(*arguments(data, out), *limits, *own, "--json")
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    measured = {plan["origin"]: plan["measured"] for plan in facts["plans"]}
    assert {facts["chosen"], facts["leader"]} <= set(measured)
    assert "own" in facts["left_out"]
    assert measured[facts["leader"]]["behind"] is None
    assert measured[facts["chosen"]]["ties"]
    assert all(0 < of["seeds"] <= 2 for of in measured.values())
    assert facts["best"]["linked_sram_bytes"]["total"] <= sram
    assert facts["best"]["measured_delta_bytes"] <= 1_500
    assert facts["best"]["measured_instructions"] <= instructions
    assert all(plan["costs"]["instructions"] <= instructions for plan in facts["plans"])
    assert facts["limits"]["round"] == {"samples": 64, "epochs": 1}
    for plan in facts["plans"]:
        assert max(plan["rounds_delta_bytes"]) <= plan["costs"]["delta_bytes"] <= 1_500
    assert set(json.loads(out.read_text())["plans"]) == {plan["name"] for plan in facts["plans"]}
    for picture in ("plans.contributions.svg", "plans.accuracy.svg"):
        assert "<svg" in (tmp_path / picture).read_text()

    compiled = tinyfleet(
        "compile", MODEL, "--board", "stm32f407", "--calibration", CALIBRATION,
        "--plan", f"{out}#best", "--out", tmp_path / "bundle",
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    bundle = load_bundle(tmp_path / "bundle")
    (plan,) = bundle.manifest.plans
    assert plan.id == next(p["id"] for p in facts["plans"] if p["name"] == "best")
    assert bundle.report.plans[0].sram_bytes.total <= sram
    counted = measure(bundle.path).instructions.step
    assert counted == facts["best"]["measured_instructions"]

    rounds = ["--round-samples", 12, "--round-epochs", 2]
    shown = tinyfleet(*arguments(data, out), *limits, "--method", "fisher", *rounds)
    assert shown.returncode == 0, shown.stderr
    assert "nats per step" in shown.stdout
    assert "Last choice: 2 epochs at 0.01, 2 seeds" in shown.stdout
    assert "Plan best is " in shown.stdout
    assert "of a first round, from the model's own weights on, of 12 samples, 2 epochs" in (
        shown.stdout
    )
    assert f"--plan {out}#best" in shown.stdout
    # Momentum keeps a second number for each weight, of which the best plan has as many as fit.
    (momentum,) = [line for line in shown.stdout.splitlines() if "momentum 0.9" in line]
    assert "beyond the limits" in momentum
    (batch,) = [line for line in shown.stdout.splitlines() if "accumulate 32" in line]
    assert "a round of 24 steps ends before a batch does" in batch


def test_what_does_not_fit_together_is_refused_in_one_message(
    tinyfleet: Run, data: Path, tmp_path: Path
) -> None:
    folder = tinyfleet(*arguments(data, tmp_path))
    assert (folder.returncode, folder.stdout) == (1, "")
    assert "is a folder; give the plan file's name with --out FILE" in folder.stderr
    np.savez(tmp_path / "unlabelled.npz", x=np.load(CALIBRATION)["x"])
    unlabelled = tinyfleet(*arguments(tmp_path / "unlabelled.npz", tmp_path / "plans.json"))
    assert unlabelled.returncode == 1
    assert "no array 'y' (it holds x)" in unlabelled.stderr
    percentile = tinyfleet(*arguments(data, tmp_path / "plans.json"), "--percentile", 99)
    assert percentile.returncode == 1
    assert "belongs to --calibration-method percentile" in percentile.stderr
    assert "Traceback" not in folder.stderr + unlabelled.stderr
