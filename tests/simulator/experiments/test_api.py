"""Running, comparing, sweeping and replaying from Python."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from simulator.errors import ExperimentError
from simulator.experiments import FinishedRun, compare, replay, run, sweep
from simulator.experiments.api import points
from simulator.experiments.runner import decided_by_seeds, digest
from tests.simulator.experiments import tiny

ONE_STRATEGY = {"strategies": {"together": {"kind": "centralized", "plan": "small"}}}


@pytest.fixture
def small_run(build: Path, tmp_path: Path) -> Path:
    """Of one strategy without a fleet: it takes a blink."""
    out = tmp_path / "small"
    shutil.copytree(build, out / "build")
    run(tiny.source(**ONE_STRATEGY), out, seeds=[5])
    return out


def test_a_run_replays_and_stays_as_it_is(small_run: Path) -> None:
    before = {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()}
    found = replay(small_run)
    assert (found.equal, found.differing) == (True, ())
    assert {path: path.read_bytes() for path in small_run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_cant_be_replayed(tmp_path: Path, small_run: Path) -> None:
    with pytest.raises(ExperimentError, match="isn't the folder of a run"):
        replay(tmp_path)
    (small_run / "result.json").unlink()
    with pytest.raises(ExperimentError, match="no finished run"):
        replay(small_run)


def test_a_finished_run_is_read_instead_of_run(small_run: Path) -> None:
    before = decided_by_seeds(small_run)
    again = run(tiny.source(**ONE_STRATEGY), small_run, seeds=[5])
    assert decided_by_seeds(small_run) == before
    assert again.result == FinishedRun.read(small_run, "tiny").result
    seconds = json.loads((small_run / "run.json").read_text())["cell_seconds"]
    assert list(seconds) == ["together-5"]


def test_a_sweep_runs_every_combination_and_compares_them(build: Path, tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    shutil.copytree(build, out / "build")
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(tiny.content(**ONE_STRATEGY)))
    vary = {"defaults.learning_rate": [0.01, 0.05], "world.data.min_samples": [4]}
    found = sweep(path, vary, out, seeds=[2])
    names = [f"learning_rate={rate},min_samples=4" for rate in (0.01, 0.05)]
    assert [one.label for one in found.series] == [f"{name}: together" for name in names]
    for name in names:
        kept = json.loads((out / name / "experiment.json").read_text())
        assert f"learning_rate={kept['strategies']['together']['learning_rate']}" in name
    facts = json.loads((out / "comparison.json").read_text())
    assert [one["run"] for one in facts["series"]] == names
    assert (out / "report.html").exists()
    again = {name: digest(out / name) for name in names}
    sweep(path, vary, out, seeds=[2])
    assert {name: digest(out / name) for name in names} == again


@pytest.mark.parametrize(
    ("vary", "told"),
    [
        ({"name.first": [1]}, "name.first leads nowhere"),
        ({"seeds.0": [1]}, "seeds.0 leads nowhere"),
        ({"defaults.": [1]}, "leads nowhere"),
        ({"a.x": ["1/2", "1 2"]}, "two points are called"),
    ],
)
def test_a_sweep_over_nothing_is_refused(vary: dict[str, list[Any]], told: str) -> None:
    with pytest.raises(ExperimentError, match=told):
        list(points(tiny.content(), vary))


def test_a_point_has_its_values_and_leaves_the_file_alone() -> None:
    content = tiny.content()
    rule = {"rule": "server-adam"}
    first, second = points(content, {"defaults.aggregation": [rule, None]})
    assert first.content["defaults"]["aggregation"] == rule
    assert second.content["defaults"]["aggregation"] is None
    assert content == tiny.content()
    assert [first.name, second.name] == ["aggregation=rule-server-adam", "aggregation=None"]


def test_fields_of_a_sweep_are_told_apart_by_what_they_belong_to() -> None:
    rates = {f"strategies.{name}.learning_rate": [0.5] for name in ("alone", "together")}
    (made,) = points(tiny.content(), rates)
    assert made.name == "alone.learning_rate=0.5,together.learning_rate=0.5"


def test_runs_are_told_apart_by_their_folders(finished: Path, tmp_path: Path) -> None:
    others = [tmp_path / "a" / "tiny", tmp_path / "b" / "tiny"]
    for one in others:
        one.mkdir(parents=True)
        shutil.copy(finished / "result.json", one)
    found = compare(others, tmp_path / "out", target_accuracy=1.0)
    assert [one.label for one in found.series][::3] == ["a/tiny: together", "b/tiny: together"]
    assert {one.target_accuracy for one in found.series} == {1.0}
    with pytest.raises(ExperimentError, match="once"):
        compare([finished, finished / ".." / finished.name], tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", '{"format": "tinyfleet-experiment/9"}', "[" * 9999])
def test_what_is_no_result_isnt_compared(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ExperimentError, match=r"no finished run|isn't a result"):
        compare([tmp_path], tmp_path / "out")
