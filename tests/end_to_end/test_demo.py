"""The demo as users run it, small."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.patience import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files with a short path; all processes of a demo know its name."""
    folder = Path(tempfile.mkdtemp(prefix="tf-"))
    yield folder
    for process in running(folder):
        os.kill(process, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def start_demo(out: Path, scratch: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fleet.cli", "demo", "--out", str(out), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"},
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """Tests that run in the background are started with interrupts ignored, and hand that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def running(scratch: Path) -> dict[int, str]:
    """Process → command line, of all that were started with this folder for temporary files."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            if f"TMPDIR={scratch}\0".encode() in (process / "environ").read_bytes() + b"\0":
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
        except (OSError, ValueError):
            continue
    return found


def processes_of(scratch: Path) -> list[str]:
    """Their command lines alone."""
    return list(running(scratch).values())


def test_a_small_demo_learns_and_leaves_nothing_but_its_result_folder(
    tmp_path: Path, scratch: Path
) -> None:
    out = tmp_path / "demo"
    demo = start_demo(out, scratch, "--devices", "6", "--rounds", "2", "--json")
    said, errors = demo.communicate(timeout=3000)
    assert demo.returncode == 0, errors
    result = json.loads((out / "result.json").read_text())
    assert json.loads(said) == result
    assert result["accuracy"]["median_after"] > result["accuracy"]["median_before"]
    assert result["deltas"]["accepted"] >= 6 * 3
    for plan in result["plans"]:
        assert plan["sram_total_bytes"] <= plan["sram_limit_bytes"]
        assert 0 < plan["stack_high_water_bytes"] <= plan["sram_bytes"]["stack"]
        assert plan["instructions_per_step"] > plan["instructions_forward"] > 0
    assert {plan["name"] for plan in result["plans"] if plan["devices"]} == {
        "small",
        "middle",
        "full",
    }
    middle = [plan for plan in result["plans"] if plan["name"] == "middle" and plan["devices"]]
    assert all(plan["uplink"]["ratio"] <= 1 / 50 for plan in middle)
    table = pq.read_table(out / "rounds.parquet").to_pydict()
    reasons = dict(zip(table["plan"], table["plan_reason"], strict=True))
    names = {plan["id"]: plan["name"] for plan in result["plans"]}
    assert {names[plan]: why.split()[0] for plan, why in reasons.items()} == {
        "small": "battery",
        "middle": "full",  # what it would take on the narrow link
        "full": "no",
    }
    assert processes_of(scratch) == []
    assert not list(scratch.glob("tinyfleet-*"))


@pytest.mark.long
def test_a_private_demo_learns_from_sums_that_nobody_could_take_apart(
    tmp_path: Path, scratch: Path
) -> None:
    out = tmp_path / "demo"
    demo = start_demo(out, scratch, "--devices", "6", "--rounds", "1", "--private", "--json")
    said, errors = demo.communicate(timeout=3000)
    assert demo.returncode == 0, errors
    result = json.loads(said)
    assert result["accuracy"]["median_after"] > result["accuracy"]["median_before"]
    assert result["privacy"][0].startswith("Masked and signed: 3 of 3 sets were unmasked")
    assert any("one owner" in line for line in result["privacy"])
    middle = [plan for plan in result["plans"] if plan["name"] == "middle" and plan["devices"]]
    assert all(plan["uplink"]["ratio"] <= 1 / 10 for plan in middle)
    assert processes_of(scratch) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_behind(
    tmp_path: Path, scratch: Path, number: signal.Signals
) -> None:
    demo = start_demo(tmp_path / "demo", scratch, "--devices", "4", "--rounds", "50")
    assert demo.stdout is not None
    for line in demo.stdout:
        if line.startswith("scoring"):
            break
    assert len(processes_of(scratch)) > 8, "broker, gateways, Flower and boards run"
    demo.send_signal(number)
    _, errors = demo.communicate(timeout=PATIENCE_SECONDS)
    assert demo.returncode == 130
    assert "Traceback" not in errors
    wait_until(lambda: not processes_of(scratch), lambda: processes_of(scratch))
