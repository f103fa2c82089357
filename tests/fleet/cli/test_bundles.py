"""Commands find bundles that they aren't told of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.fleet.cli.conftest import Run

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


def test_without_any_bundle_the_remedy_is_named(tinyfleet: Run, tmp_path: Path) -> None:
    for command in ("measure", "explain"):
        failed = tinyfleet(command, cwd=tmp_path)
        assert failed.returncode == 1
        assert failed.stderr.startswith("error: no bundle named, and none in out/; make one with")


@pytest.mark.slow
def test_the_bundle_compiled_last_is_taken(tinyfleet: Run, tmp_path: Path) -> None:
    given = ("--calibration", DIGITS / "calibration.npz")
    for board in ("stm32f407", "stm32f746"):
        done = tinyfleet("compile", DIGITS / "digits.onnx", "--board", board, *given, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"The bundle is in out/digits-{board}." in done.stdout
    explained = tinyfleet("explain", cwd=tmp_path)
    assert "out/digits-stm32f746" in explained.stderr
    os.utime(tmp_path / "out" / "digits-stm32f407" / "manifest.json")
    measured = tinyfleet("measure", "--json", cwd=tmp_path)
    assert "out/digits-stm32f407" in measured.stderr
    assert '"board": "stm32f407"' in measured.stdout
