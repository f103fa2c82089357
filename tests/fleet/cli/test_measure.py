"""`tinyfleet measure --data` as users call it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.codegen.dense_network import dense_network
from tests.fleet.cli.conftest import Run

MODELS = Path(__file__).parents[2] / "codegen" / "models"


@pytest.mark.slow
def test_a_bundle_is_measured_on_samples_before_and_after_training(
    tinyfleet: Run, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    x = random.normal(size=(150, 5)).astype(np.float32)
    np.savez(tmp_path / "own.npz", x=x, y=(x[:, 0] + x[:, 1] > 0).astype(np.int64))
    onnx.save(dense_network((5,), 1, "Sigmoid"), tmp_path / "net.onnx")
    out = str(tmp_path / "bundle")
    done = tinyfleet(
        *("compile", tmp_path / "net.onnx", "--board", "stm32f746", "--out", out),
        *("--calibration", tmp_path / "own.npz"),
    )
    assert done.returncode == 0, done.stderr
    for line in ("Output: 'Sigmoid', one value.", "Loss: binary cross entropy",
                 "Labels: 0 … 1, one number a sample."):  # fmt: skip
        assert line in done.stdout
    call = (
        *("measure", out, "--data", tmp_path / "own.npz", "--model", tmp_path / "net.onnx"),
        *("--epochs", 8, "--plan", "full", "--held-out", 0.4, "--learning-rate", 0.03),
    )
    shown = tinyfleet(*call)
    assert shown.returncode == 0, shown.stderr
    for word in ("60 samples held out of 150", "same as the float model", "Confusion after", "yes"):
        assert word in shown.stdout
    facts = json.loads(tinyfleet(*call, "--json").stdout)
    assert facts["after"]["accuracy"] > max(0.85, facts["before"]["accuracy"])
    assert facts["before"]["agreement"] > 0.95
    assert facts["trained_samples"] == 90
    assert "need samples" in tinyfleet("measure", out, "--epochs", 2).stderr


@pytest.mark.slow
def test_an_autoencoder_without_a_matrix_is_compiled_and_measured(
    tinyfleet: Run, tmp_path: Path
) -> None:
    model, own = MODELS / "autoencoder_transposed_script.onnx", tmp_path / "own.npz"
    np.savez(own, x=np.random.default_rng(0).normal(size=(64, 2, 12, 8)).astype(np.float32))
    last = [n.name for n in onnx.load(model).graph.node if n.op_type == "ConvTranspose"][-1]
    plan = tmp_path / "mine.json"
    trains = {"biases": {"last": 2}, "weights": [{"layer": last, "start": 0, "count": 2}]}
    head = {"format": "tinyfleet-plan/1", "name": "mine", "head": True, "personal": ["biases"]}
    plan.write_text(json.dumps({**head, **trains}))
    call = ("compile", model, "--board", "stm32f746", "--calibration", own, "--out")
    trained, inferred = tmp_path / "trained", tmp_path / "inferred"
    made = tinyfleet(*call, trained, "--plan", plan)
    for line in ("against the model's own input", "In the external flash: personal values"):
        assert line in made.stdout, made.stderr
    made = tinyfleet(*call, inferred, "--loss", "none")
    assert "only infers" in made.stdout, made.stderr
    emulated = tinyfleet("measure", trained).stdout
    assert "squared units" in emulated
    assert re.search(r"Outputs: (-?[0-9.]+, ){15}-?[0-9.]+ and 176 more", emulated)
    facts = json.loads(tinyfleet("measure", trained, "--data", own, "--json").stdout)
    assert facts["before"]["loss"] > 0
    assert facts["before"]["accuracy"] is None
    assert "no loss to measure" in tinyfleet("measure", inferred, "--data", own).stdout
    refused = tinyfleet("plan", model, "--board", "stm32f746", "--data", own)
    assert "classifiers only" in refused.stderr
