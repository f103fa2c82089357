"""`tinyfleet compile`: its options for quantization, and what it says of plans that don't fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from codegen.firmware.boards import load_board
from codegen.firmware.bundle import QUANTIZATION, Bundle, load_bundle
from codegen.quantization.report import load_report
from tests.codegen.dense_network import dense_network
from tests.codegen.importer.test_model import normal
from tests.codegen.importer.test_old_opsets import old_model
from tests.fleet.cli.conftest import Run

CLASSES = np.arange(24) % 3
ROWS = (np.eye(3)[CLASSES] + np.random.default_rng(1).normal(0, 0.1, (24, 3))).astype(np.float32)
DIGITS = Path(__file__).parents[3] / "examples" / "digits"
PLANS = DIGITS / "plans.json"


def test_an_unknown_method_ends_with_code_2_and_the_known_ones(tinyfleet: Run) -> None:
    failed = tinyfleet(
        *("compile", "m.onnx", "--board", "stm32f746", "--out", "o"),
        *("--calibration-method", "entropy"),
    )
    assert failed.returncode == 2
    assert "percentile" in failed.stderr


def test_calibration_files_that_do_not_fit_give_one_message(tinyfleet: Run, tmp_path: Path) -> None:
    x = np.load(DIGITS / "calibration.npz")["x"]
    broken = {
        "channels stand last": x.transpose(0, 2, 3, 1)[:, :, :7],
        "float32 is expected": (x * 16).astype(np.uint8),
        "NaN": np.where(x == x.max(), np.nan, x),
        "at least 8": x[:3],
    }
    for words, array in broken.items():
        np.savez(tmp_path / "broken.npz", x=array)
        failed = tinyfleet(
            *("compile", str(DIGITS / "digits.onnx"), "--board", "stm32f746"),
            *("--out", str(tmp_path / "out"), "--calibration", str(tmp_path / "broken.npz")),
        )
        assert failed.returncode == 1
        assert failed.stderr.count("error:") == 1
        assert words in failed.stderr
        assert "Traceback" not in failed.stderr


def test_what_a_full_log_keeps_is_chosen_and_the_note_on_one_that_fills_is_shown(
    tinyfleet: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = (
        *("compile", str(DIGITS / "digits.onnx"), "--board", "stm32f746", "--out", str(out)),
        *("--calibration", str(DIGITS / "calibration.npz"), "--plan", f"{PLANS}#small"),
    )
    shown = tinyfleet(*call, "--samples", "reservoir")
    assert shown.returncode == 0, shown.stderr
    assert load_bundle(out).manifest.flash.samples.keep == "reservoir"
    assert "Note: log fills" in shown.stdout
    refused = tinyfleet(*call, "--samples", "oldest")
    assert refused.returncode == 2
    assert "reservoir" in refused.stderr


def test_a_file_of_an_old_opset_compiles_and_the_output_says_that_it_was_converted(
    tinyfleet: Run, tmp_path: Path
) -> None:
    onnx.save(old_model(9), tmp_path / "old.onnx")
    np.savez(tmp_path / "x.npz", x=normal(16, 3, 7, 6))
    shown = tinyfleet(
        *("compile", tmp_path / "old.onnx", "--board", "stm32f746", "--out", tmp_path / "out"),
        *("--calibration", tmp_path / "x.npz", "--loss", "cross-entropy"),
    )
    assert shown.returncode == 0, shown.stderr
    assert "Note: the model's ONNX opset 9 was converted to opset 13" in shown.stdout


@pytest.mark.slow
def test_the_report_is_shown_and_lies_in_the_bundle(tinyfleet: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = (
        *("compile", str(DIGITS / "digits.onnx"), "--board", "stm32f746", "--out", str(out)),
        *("--calibration", str(DIGITS / "calibration.npz"), "--quantization-report"),
        *("--calibration-method", "mse", "--equalize"),
    )
    shown = tinyfleet(*call)
    assert shown.returncode == 0, shown.stderr
    bundle = load_bundle(out)
    assert QUANTIZATION in bundle.manifest.files
    report = load_report(out / QUANTIZATION)
    assert report.method == "mse"
    assert report.equalized
    for layer in report.comparison.layers:
        assert layer.layer in shown.stdout
    assert "200 samples, the same class" in shown.stdout
    assert f"{100 * report.comparison.top1_agreement:.1f} % of them" in shown.stdout
    facts = json.loads(tinyfleet(*call, "--json").stdout)
    assert facts["quantization"] == json.loads((out / QUANTIZATION).read_text())
    assert {plan["name"] for plan in facts["plans"]} == {"small", "middle", "full"}


@pytest.mark.slow
def test_a_plan_that_does_not_fit_is_refused_with_the_nearest_that_does(
    tinyfleet: Run, tmp_path: Path
) -> None:
    board = tmp_path / "small.json"
    narrow = load_board("stm32f746").model_copy(update={"sram_limit_bytes": 32768})
    board.write_text(narrow.model_dump_json())
    failed = tinyfleet(
        *("compile", str(DIGITS / "digits.onnx"), "--board", str(board)),
        *("--out", str(tmp_path / "out"), "--calibration", str(DIGITS / "calibration.npz")),
        *("--plan", f"{DIGITS / 'plans.json'}#full"),
    )
    assert failed.returncode == 1
    assert "The nearest plan to full that fits trains " in " ".join(failed.stderr.split())


@pytest.mark.slow
def test_what_no_plan_trains_is_frozen_unless_another_board_trains_it(
    tinyfleet: Run, tmp_path: Path
) -> None:
    def compiled(name: str, *options: str) -> tuple[str, Bundle]:
        shown = tinyfleet(
            *("compile", str(DIGITS / "digits.onnx"), "--board", "stm32f746"),
            *("--calibration", str(DIGITS / "calibration.npz"), "--out", str(tmp_path / name)),
            *("--plan", f"{DIGITS / 'plans.json'}#small", *options),
        )
        assert shown.returncode == 0, shown.stderr
        return shown.stdout, load_bundle(tmp_path / name)

    shown, alone = compiled("alone")
    assert "4,648 of weights and 36,780 of frozen ones" in shown
    shown, both = compiled("both", "--publish", f"{DIGITS / 'plans.json'}#full")
    assert "41,428 of weights. Compiled" in shown
    assert [plan.id for plan in alone.manifest.plans] == [plan.id for plan in both.manifest.plans]
    assert alone.manifest.model.digest != both.manifest.model.digest


def test_a_model_that_could_be_a_classifier_or_an_autoencoder_is_asked_about(
    tinyfleet: Run, tmp_path: Path
) -> None:
    onnx.save(dense_network((3,), 3), tmp_path / "twofold.onnx")
    np.savez(tmp_path / "x.npz", x=ROWS)
    np.savez(tmp_path / "ids.npz", x=ROWS, y=1000 + np.arange(len(ROWS)))
    model = (str(tmp_path / "twofold.onnx"), "--board", "stm32f746", "--out", str(tmp_path / "o"))
    for command, samples, words in (
        (("compile", *model, "--calibration"), "x.npz", "classifier or an autoencoder"),
        (("compile", *model, "--calibration"), "ids.npz", "neither numbers of classes 0 … 2"),
        (("plan", *model, "--data"), "x.npz", "classifier or an autoencoder"),
    ):
        failed = tinyfleet(*command, str(tmp_path / samples))
        assert failed.returncode == 1
        for part in (words, "model 'twofold'", "output 'scores'", "--loss cross-entropy"):
            assert part in failed.stderr
        assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "arrays", "loss", "shown"),
    [
        ((), {"y": CLASSES}, "cross-entropy", "Loss: cross entropy over 3 classes (the labels 'y'"),
        (("--loss", "mse"), {}, "mse", "Loss: mean squared error against the model's own input"),
    ],
    ids=["labels", "said"],
)
def test_the_loss_is_shown_and_stands_in_report_and_manifest(
    options: tuple[str, ...],
    arrays: dict[str, np.ndarray],
    loss: str,
    shown: str,
    tinyfleet: Run,
    tmp_path: Path,
) -> None:
    onnx.save(dense_network((3,), 3), tmp_path / "twofold.onnx")
    np.savez(tmp_path / "samples.npz", x=ROWS, **arrays)
    out = tmp_path / "out"
    done = tinyfleet(
        *("compile", str(tmp_path / "twofold.onnx"), "--board", "stm32f746", "--out", str(out)),
        *("--calibration", str(tmp_path / "samples.npz"), *options),
    )
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert "That is a guess" not in done.stdout
    bundle = load_bundle(out)
    assert bundle.report.loss.name == loss
    assert not bundle.report.loss.guessed
    assert {plan.plan["loss"] for plan in bundle.manifest.plans} == {loss}


@pytest.mark.slow
def test_a_loss_that_would_be_a_guess_is_asked_for(tinyfleet: Run, tmp_path: Path) -> None:
    onnx.save(dense_network((5,), 3), tmp_path / "logits.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(2).normal(size=(24, 5)).astype("f4"))
    call = (
        *("compile", str(tmp_path / "logits.onnx"), "--board", "stm32f746"),
        *("--calibration", str(tmp_path / "x.npz"), "--out", str(tmp_path / "out")),
    )
    refused = tinyfleet(*call)
    assert refused.returncode != 0
    for loss in ("cross-entropy", "binary", "mse", "none"):
        assert f"--loss {loss}" in refused.stderr
    done = tinyfleet(*call, "--loss", "none")
    for line in ("Output: 'scores', 3 values.", "the bundle only infers", "Labels: play no part."):
        assert line in done.stdout
    (plan,) = load_bundle(tmp_path / "out").manifest.plans
    assert (plan.delta_values, plan.segments) == (0, ())
    np.savez(tmp_path / "own.npz", x=np.ones((9, 5), "f4"))
    measure = ("measure", str(tmp_path / "out"), "--data", str(tmp_path / "own.npz"))
    assert "trains nothing" in tinyfleet(*measure, "--epochs", "1").stderr
    assert "9 samples" in tinyfleet(*measure).stdout
