"""`tinyfleet compile`: its options for quantization, and what it says of plans that don't fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codegen.firmware.boards import load_board
from codegen.firmware.bundle import QUANTIZATION, Bundle, load_bundle
from codegen.quantization.report import load_report
from tests.fleet.cli.conftest import Run

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


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
    assert f"{report.comparison.top1_agreement:.1%} of them" in shown.stdout
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
