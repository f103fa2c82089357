"""`tinyfleet experiment` as users call it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.cli import app
from simulator.errors import ExperimentError
from tests.simulator.experiments import tiny


def called(*arguments: object) -> str:
    """What a command prints; its errors are raised."""
    words = ["experiment", *map(str, arguments)]
    return CliRunner().invoke(app, words, catch_exceptions=False).stdout


def test_the_command_starts_without_anything_heavy() -> None:
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, simulator.experiments.cli, fleet.cli;"
            "heavy = {'matplotlib', 'numpy', 'pyarrow', 'pydantic', 'yaml'};"
            "print(heavy & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == "set()"


def test_a_run_shows_a_table_and_where_the_report_is(finished: Path, tmp_path: Path) -> None:
    file = tiny.file(tmp_path)
    shown = called("run", file, "--out", finished)
    for told in ("6 of 6", "fedavg", "never trained", "mean accuracy of devices is 50 %"):
        assert told in shown
    assert f"Report: {finished / 'report.html'}" in shown
    facts = json.loads(called("run", file, "--out", finished, "--json"))
    assert facts == json.loads((finished / "result.json").read_text())


def test_other_seeds_than_those_of_a_folder_are_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match="another --out"):
        called("run", tiny.file(tmp_path), "--out", finished, "--seed", 9)


def test_runs_are_compared_as_json(finished: Path, tmp_path: Path) -> None:
    facts = json.loads(called("compare", finished, "--out", tmp_path / "out", "--json"))
    assert facts == json.loads((tmp_path / "out" / "comparison.json").read_text())


def test_what_a_file_can_name_is_listed() -> None:
    found = json.loads(called("list", "--json"))
    assert {"campaign", "centralized", "local-only"} <= found["strategies"].keys()
    assert {"digits", "flowers", "har", "keywords", "npz"} <= found["datasets"].keys()
    assert {"fedavg", "server-adam", "bucket-median"} <= found["aggregation rules"].keys()
    assert {"host", "unicorn"} <= found["machines"].keys()
    assert {Path(one).stem for one in found["examples"]} >= {"digits", "har"}
    assert all(found["examples"].values())
    shown = called("list")
    assert "server-adam" in shown


@pytest.mark.parametrize("vary", ["defaults.rounds", "=1", "defaults.rounds=", "a=[", "a=1]"])
def test_values_that_cant_be_read_are_refused(tmp_path: Path, vary: str) -> None:
    with pytest.raises(ExperimentError, match="--vary"):
        called("sweep", tiny.file(tmp_path), "--vary", vary, "--out", tmp_path / "out")


def test_a_field_is_varied_once(tmp_path: Path) -> None:
    twice = ("--vary", "defaults.rounds=1", "--vary", "defaults.rounds=2")
    with pytest.raises(ExperimentError, match="twice"):
        called("sweep", tiny.file(tmp_path), *twice, "--out", tmp_path / "out")


def test_a_replay_that_differs_names_the_files_and_ends_with_code_1(
    tmp_path: Path, build: Path
) -> None:
    strategies = {"together": {"kind": "centralized", "plan": "small"}}
    out = tmp_path / "run"
    tiny.digest_of_run(out, build, strategies=strategies, seeds=[1])
    figures = out / "result.json"
    figures.write_text(figures.read_text().replace('"finished"', '"paused"'))
    (out / "reports.parquet").unlink()
    ended = CliRunner().invoke(app, ["experiment", "replay", str(out), "--json"])
    assert ended.exit_code == 1
    assert json.loads(ended.stdout) == {
        "equal": False,
        "differing": ["reports.parquet", "result.json"],
    }
