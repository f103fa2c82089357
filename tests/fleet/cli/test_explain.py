"""`tinyfleet explain` on a real bundle: figures that add up, pictures, and refusals."""

from __future__ import annotations

import hashlib
import json
import shutil
import xml.etree.ElementTree as xml
from pathlib import Path
from typing import Any

import pytest

from codegen.firmware.bundle import MANIFEST, Manifest, canonical_json
from fleet.firmware import compile_firmware
from simulator.machines.measure import measure
from tests.fleet.cli.conftest import Run

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two plans, of which the second one's steps must not be taken for the first one's."""
    return compile_firmware(
        EXAMPLE / "digits.onnx",
        "stm32f746",
        [f"{EXAMPLE / 'plans.json'}#{plan}" for plan in ("small", "middle")],
        EXAMPLE / "calibration.npz",
        tmp_path_factory.mktemp("explained") / "bundle",
    ).path


@pytest.fixture
def facts(bundle: Path, tinyfleet: Run) -> dict[str, Any]:
    shown = tinyfleet("explain", bundle, "--plan", "middle", "--instructions", "--json")
    assert shown.returncode == 0, shown.stderr
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def test_totals_are_those_of_the_report_and_of_measure(facts: dict[str, Any], bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())["plans"][1]
    for phase in ("forward", "backward"):
        steps = [step for step in facts["steps"] if step["phase"] == phase]
        assert sum(step["macs"] for step in steps) == report["macs"][phase]
    assert facts["arena_lower_bound_bytes"] == report["arena_lower_bound_bytes"]
    assert facts["peak"]["live_bytes"] == report["arena_lower_bound_bytes"]
    assert facts["sram_bytes"] == report["sram_bytes"]
    assert facts["arena_bytes"] <= report["sram_bytes"]["arena"]
    assert facts["state_bytes"] == report["sram_bytes"]["state"]
    counted = [step["instructions"] for step in facts["steps"]]
    assert min(counted) > 0
    outside = facts["instructions_outside_steps"]
    assert sum(counted) + outside == measure(bundle, "middle").instructions.step
    assert outside < 1_000


def test_instructions_go_to_the_steps_whose_kernels_take_them(
    facts: dict[str, Any], bundle: Path
) -> None:
    by_kernel = measure(bundle, "middle").instructions.by_kernel
    sums = [s["instructions"] for s in facts["steps"] if s["kernel"] == "head_update"]
    own = by_kernel["tf_head_update"]
    assert own < sum(sums)
    scores = [s["instructions"] for s in facts["steps"] if s["phase"] == "forward"]
    assert sum(scores) == pytest.approx(measure(bundle, "middle").instructions.forward, rel=0.02)


def test_the_table_has_every_step_the_peak_and_the_sram(bundle: Path, tinyfleet: Run) -> None:
    shown = tinyfleet("explain", bundle)
    assert shown.returncode == 0, shown.stderr
    steps = json.loads((bundle / "program.json").read_text())["plans"][0]["steps"]
    rows = [line.split("│")[1:] for line in shown.stdout.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    for number, step in enumerate(steps):
        row = next(row for row in cells if row[0] == str(number) and row[1] == step["kernel"])
        assert row[2] == step["layer"]
        assert row[5:7] == [f"{step['live_bytes']:,}", f"{step['macs']:,}"]
    assert "instructions" not in shown.stdout
    for part in ("Live at the peak", "lower bound", "Update state", "SRAM by purpose", "Flash:"):
        assert part in shown.stdout


def test_both_formats_of_the_picture_are_written(
    bundle: Path, tinyfleet: Run, tmp_path: Path
) -> None:
    for name in ("map.svg", "new/folder/map.PNG"):
        shown = tinyfleet("explain", bundle, "--memory", tmp_path / name)
        assert shown.returncode == 0, shown.stderr
        assert str(tmp_path / name) in shown.stdout
    root = xml.fromstring((tmp_path / "map.svg").read_bytes())
    assert "plan small on stm32f746" in " ".join(root.itertext())
    assert (tmp_path / "new/folder/map.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plan", "huge"], "has no plan 'huge'; it has small"),
        (["--memory", "map.jpg"], "map.jpg: name a file that ends in .png or .svg"),
        (["--memory", "/dev/null/map.svg"], "/dev/null: "),
    ],
)
def test_what_cannot_be_done_is_named(
    bundle: Path, tinyfleet: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    refused = tinyfleet("explain", bundle, *arguments, cwd=tmp_path)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert refused.stdout == ""


def test_a_folder_that_is_no_bundle_is_refused(tinyfleet: Run, tmp_path: Path) -> None:
    refused = tinyfleet("explain", tmp_path)
    assert refused.returncode == 1
    assert f"{tmp_path} is no bundle" in refused.stderr


def changed(bundle: Path, folder: Path, program: bytes | None) -> Path:
    """The bundle with another program.json, or none, and a manifest that says so."""
    shutil.copytree(bundle, folder)
    content = json.loads((folder / MANIFEST).read_text())
    if program is None:
        (folder / "program.json").unlink()
        del content["files"]["program.json"]
    else:
        (folder / "program.json").write_bytes(program)
        content["files"]["program.json"] = hashlib.sha256(program).hexdigest()
    manifest = Manifest.model_validate(content).model_dump(mode="json", exclude={"sha256"})
    manifest["sha256"] = hashlib.sha256(canonical_json(manifest)).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_bundle_from_before_programs_were_written_says_compile_again(
    bundle: Path, tinyfleet: Run, tmp_path: Path
) -> None:
    refused = tinyfleet("explain", changed(bundle, tmp_path / "old", None))
    assert refused.returncode == 1
    assert "has no program.json" in refused.stderr
    assert "compile it again with tinyfleet compile" in refused.stderr


def test_a_program_of_another_format_says_compile_again(
    bundle: Path, tinyfleet: Run, tmp_path: Path
) -> None:
    newer = (bundle / "program.json").read_bytes().replace(b"program/1", b"program/2")
    refused = tinyfleet("explain", changed(bundle, tmp_path / "newer", newer))
    assert refused.returncode == 1
    assert "another version of tinyfleet (format:" in refused.stderr
    assert "compile the bundle again" in refused.stderr
