"""What a run leaves, and that only its seeds decide it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from simulator.errors import ExperimentError
from simulator.experiments.runner import decided_by_seeds, digest, run_experiment
from simulator.experiments.workers import pool_with
from tests.simulator.experiments import tiny


def test_tables_and_figures_tell_the_same(finished: Path) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert [f"{one['strategy']}-{one['seed']}" for one in result["cells"]] == tiny.CELLS
    devices = parquet.read_table(finished / "devices.parquet").to_pylist()
    rounds = parquet.read_table(finished / "rounds.parquet").to_pylist()
    spent = parquet.read_table(finished / "spent.parquet").to_pylist()
    for cell in result["cells"]:
        about = {"strategy": cell["strategy"], "seed": cell["seed"]}
        last = cell["last"]
        own = [
            one["correct"] / one["samples"]
            for one in devices
            if about.items() <= one.items()
            and (one["training_round"], one["group"]) == (2, "fleet")
        ]
        assert len(own) == last["accuracy"]["devices"] == 4
        assert sum(own) / 4 == pytest.approx(last["accuracy"]["mean"])
        ends = [one for one in rounds if about.items() <= one.items()]
        assert bool(ends) == (cell["strategy"] == "fedavg")
        if ends:
            assert last["bytes_up"] == ends[-1]["bytes_up"] > 0
            assert last["seconds"] == ends[-1]["ends_seconds"] > 0
            assert last["never_trained"]["devices"] == 2
        each = [one for one in spent if about.items() <= one.items()]
        assert cell["has_fleet"] == bool(each) == bool(ends)
        if each:
            assert [one["device"] for one in each] == [0, 1, 2, 3]
            for name in ("train_steps", "bytes_up", "bytes_down"):
                assert sum(one[name] for one in each) == ends[-1][name] > 0
            assert max(one["flash_wear"] for one in each) == last["most_flash_wear"]


def test_a_run_that_is_killed_goes_on_and_comes_to_the_same(
    finished: Path, build: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    # It kills itself in the middle of its second cell.
    command = (
        "import os, signal, sys; from pathlib import Path;"
        "from tests.simulator.experiments import tiny;"
        "tell = lambda cell, stage, done, of: (cell, stage, done) == "
        "(tiny.CELLS[1], 'training together', 1) and os.kill(os.getpid(), signal.SIGKILL);"
        "tiny.run_experiment(tiny.source(), Path(sys.argv[1]), tiny.pool_with(1), tell,"
        " Path(sys.argv[2]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", command, str(out), str(build)],
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    done = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")}
    assert list(done) == tiny.CELLS[:1]
    assert not (out / "result.json").exists()
    assert tiny.digest_of_run(out, build) == digest(finished)
    kept = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("cells/*/cell.json")}
    assert sorted(kept) == sorted(tiny.CELLS)
    assert done.items() <= kept.items()


def test_any_number_of_processes_gives_the_same(
    finished: Path, build: Path, tmp_path: Path
) -> None:
    assert tiny.cell(tmp_path, build, workers=2) == tiny.kept_cell(finished)


def test_the_order_that_python_has_sets_in_decides_nothing(
    finished: Path, build: Path, tmp_path: Path
) -> None:
    command = "import sys; from tests.simulator.experiments import tiny; from pathlib import Path;"
    command += "tiny.cell(Path(sys.argv[1]), Path(sys.argv[2]))"
    subprocess.run(
        [sys.executable, "-c", command, str(tmp_path), str(build)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        check=True,
    )
    assert tiny.kept_cell(tmp_path) == tiny.kept_cell(finished)


@pytest.mark.parametrize(
    "changed",
    [{"seeds": [7]}, {"target_accuracy": 0.6}, {"defaults": {"rounds": 1}}],
    ids=lambda one: next(iter(one)),
)
def test_a_folder_of_another_experiment_is_refused(
    finished: Path, build: Path, changed: dict[str, Any]
) -> None:
    before = decided_by_seeds(finished)
    with pytest.raises(ExperimentError, match="another --out"):
        run_experiment(tiny.source(**changed), finished, pool_with(1), build=build)
    assert decided_by_seeds(finished) == before


def test_boards_in_another_order_are_another_experiment(tmp_path: Path) -> None:
    """Which device has which board follows from their order."""

    def population(*boards: str) -> dict[str, Any]:
        shares = dict.fromkeys(boards, 0.5)
        return {**tiny.content()["world"], "population": {"devices": 4, "boards": shares}}

    missing = {"onnx": "nowhere.onnx"}
    first = tiny.source(world=population("stm32f407", "stm32f746"), model=missing)
    other = tiny.source(world=population("stm32f746", "stm32f407"), model=missing)
    for source, told in ((first, "nowhere"), (first, "nowhere"), (other, "another experiment")):
        with pytest.raises((OSError, ExperimentError), match=told):
            run_experiment(source, tmp_path / "run", pool_with(1))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rounds": 3}'])
def test_a_broken_cell_is_named(build: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "run"
    cell = out / "cells" / tiny.CELLS[0] / "cell.json"
    cell.parent.mkdir(parents=True)
    cell.write_text(text)
    with pytest.raises(ExperimentError, match=f"{cell.parent.name}/cell.json.*remove it"):
        run_experiment(tiny.source(), out, pool_with(1), build=build)


@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_cells_table_that_is_broken_is_named(
    finished: Path, build: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    broken = out / "cells" / "fedavg-3" / "reports.parquet"
    content = broken.read_bytes()
    broken.unlink()
    if how == "torn":
        broken.write_bytes(content[:-9])
    with pytest.raises(ExperimentError, match=r"fedavg-3/reports.parquet.*remove"):
        run_experiment(tiny.source(), out, pool_with(1), build=build)
    shutil.rmtree(broken.parent)
    assert tiny.digest_of_run(out, build) == digest(finished)


@pytest.mark.parametrize("workers", ["0", "-1", "many", "ray:", "ray/0", "1.5", ""])
def test_workers_that_there_cant_be_are_refused(workers: str) -> None:
    with pytest.raises(ExperimentError, match="workers"):
        pool_with(workers)
