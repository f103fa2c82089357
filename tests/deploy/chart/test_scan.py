"""Checkov finds nothing in the rendered chart but what deploy/chart/checkov.yaml explains."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart.rendered import CASES, CHART, kept_folder, render

PACKAGE = "checkov==3.3.30"


@pytest.fixture(scope="session")
def checkov() -> Path:
    """The program in an environment of its own, since its many packages would change ours."""
    folder = kept_folder(PACKAGE)
    done = folder / "installed"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            venv.create(folder / "venv", clear=True, with_pip=True)
            pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", PACKAGE]
            subprocess.run(pip, check=True, stdout=sys.stderr)
            done.touch()
    return folder / "venv/bin/checkov"


@pytest.mark.long
def test_checkov_finds_nothing_but_what_is_explained(checkov: Path, tmp_path: Path) -> None:
    for case in CASES:
        text = yaml.safe_dump_all(render(case))
        (tmp_path / f"{case or 'default'}.yaml").write_text(text, "utf-8")
    done = subprocess.run(
        [
            *(str(checkov), "--directory", str(tmp_path), "--output", "json"),
            *("--config-file", str(CHART / "checkov.yaml")),
        ],
        capture_output=True,
        text=True,
    )
    summary = json.loads(done.stdout)["summary"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert (summary["failed"], summary["parsing_errors"]) == (0, 0)
    assert summary["passed"] > 1000
