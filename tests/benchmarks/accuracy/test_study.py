"""Runs are kept, found again and summed up."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="accuracy studies need PyTorch: pip install torch")

from benchmarks.accuracy import study
from benchmarks.accuracy.report import Cell, cells, difference, write_report
from benchmarks.accuracy.study import METHODS, Method, Results, run_study
from benchmarks.accuracy.tasks import Task
from benchmarks.accuracy.training import Run, Schedule
from codegen.program.plans import PlanSpec
from tests.benchmarks.accuracy.test_training import separable
from tests.codegen.random_graphs import full_plan

QUICK = Schedule(epochs=2, rate=0.05, batch=8)


def small_task() -> Task:
    def prepare(seed: int):
        graph, samples = separable(0)
        return graph, {"one": samples, "two": samples}

    return Task("flowers96", "flowers", prepare, lambda _: {"head": PlanSpec(name="h")}, ("head",))


def results(folder: Path, schedule: Schedule = QUICK) -> Results:
    return Results(folder / "accuracy" / "flowers96.json", small_task(), schedule)


def test_every_plan_method_seed_and_owner_is_run_once(tmp_path: Path) -> None:
    run_study(small_task(), ["head"], ["float", "device"], 2, results(tmp_path))
    kept = results(tmp_path)
    keys = {(run["method"], run["seed"], run["who"]) for run in kept.runs}
    assert keys == {(m, s, w) for m in ("float", "device") for s in (0, 1) for w in ("one", "two")}
    before = kept.path.read_text()
    run_study(small_task(), ["head"], ["float", "device"], 2, kept)
    assert kept.path.read_text() == before


def test_runs_of_another_schedule_are_not_mixed(tmp_path: Path) -> None:
    run_study(small_task(), ["head"], ["float"], 1, results(tmp_path))
    with pytest.raises(SystemExit, match="another schedule"):
        results(tmp_path, Schedule(epochs=3))


def test_an_unknown_plan_is_named_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no plan 'half'; it has head"):
        run_study(small_task(), ["half"], ["float"], 1, results(tmp_path))


def test_a_searching_method_takes_the_rate_of_the_best_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def train(graph, plan, samples, schedule, seed):
        tried.append(schedule.rate)
        accuracy = 0.9 if schedule.rate == pytest.approx(0.2) else 0.5
        return Run(start=0.1, accuracy={1: accuracy}, loss=[1.0])

    monkeypatch.setitem(METHODS, "searching", Method("searching", "", train, searches=True))
    monkeypatch.setattr(study, "SEARCHED", 2.0)
    run_study(small_task(), ["head"], ["searching"], 2, results(tmp_path))
    assert [run["rate"] for run in results(tmp_path).runs] == [pytest.approx(0.2)] * 4
    assert len(tried) == study.RATES + 4


def test_a_state_of_int8_learns_by_other_steps_than_q88() -> None:
    graph, samples = separable(0)
    plan = full_plan(graph)
    schedule = Schedule(epochs=4, rate=0.05, batch=8)
    lean, usual = (
        METHODS[name].train(graph, plan, samples, schedule, 0) for name in ("int8-state", "device")
    )
    assert lean.loss != usual.loss
    assert lean.loss[-1] < 0.8 * lean.loss[0]


def test_cells_average_owners_before_seeds() -> None:
    def run(seed: int, who: str, accuracy: float, diverged: bool = False) -> dict:
        key = {"plan": "head", "method": "float", "seed": seed, "who": who}
        return {**key, "start": 0.2, "end": accuracy, "diverged": diverged}

    whole = [run(0, "a", 0.5), run(0, "b", 0.7), run(1, "a", 0.8), run(1, "b", 0.8, True)]
    found = cells([*whole, run(2, "a", 0.1)])  # a seed that isn't whole yet
    cell = found["head", "float"]
    assert cell.by_seed == pytest.approx({0: 60.0, 1: 80.0})
    assert (cell.mean, cell.start, cell.diverged) == (pytest.approx(70.0), pytest.approx(20.0), 1)
    assert str(cell) == "70.0 ± 14.1 (2, 1 diverged)"


def test_differences_are_of_the_seeds_that_both_have() -> None:
    ours, theirs = Cell({0: 80.0, 1: 82.0, 2: 10.0}, 0.0, 0), Cell({0: 81.0, 1: 82.0}, 0.0, 0)
    assert difference(ours, theirs) == "-0.5 ± 0.7"
    assert difference(ours, Cell({7: 81.0}, 0.0, 0)) == ""


def test_a_page_of_no_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no results"):
        write_report(tmp_path / "accuracy")


def test_the_page_has_a_table_and_a_plot_of_every_data_set(tmp_path: Path) -> None:
    run_study(small_task(), ["head"], ["float", "device"], 1, results(tmp_path))
    write_report(tmp_path / "accuracy")
    page = (tmp_path / "accuracy.md").read_text()
    assert "## flowers96" in page
    assert "| head |" in page
    assert "cifar10_sub\n" not in page
    assert (tmp_path / "accuracy" / "flowers96.png").stat().st_size > 5_000
    assert len(json.loads((tmp_path / "accuracy" / "flowers96.json").read_text())["runs"]) == 4
