"""A run as MLflow has it; skipped where that isn't installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.errors import ExperimentError
from simulator.experiments.mlflow_export import export_to_mlflow
from tests.simulator.experiments import tiny

mlflow = pytest.importorskip("mlflow", reason="no mlflow: pip install 'tinyfleet[mlflow]'")
pytestmark = pytest.mark.slow


def test_every_cell_becomes_a_run_with_its_curve(finished: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    uri = f"sqlite:///{store / 'mlflow.db'}"
    assert export_to_mlflow(finished, str(store)) == len(tiny.CELLS)
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(one.info.run_name for one in runs) == sorted(f"tiny/{one}" for one in tiny.CELLS)
    fedavg = next(one for one in runs if one.info.run_name == "tiny/fedavg-7")
    assert fedavg.info.status == "FINISHED"
    assert fedavg.data.params["learning_rate"] == "0.02"
    assert fedavg.data.params["world.population.devices"] == "4"
    history = client.get_metric_history(fedavg.info.run_id, "bytes_up")
    assert [one.step for one in history] == [0, 1, 2]
    assert 0 == history[0].value < history[1].value < history[2].value
    files = {one.path for one in client.list_artifacts(fedavg.info.run_id)}
    assert files == {"experiment.json", "report.html", "result.json", "run.json"}


def test_a_store_that_there_isnt_is_named(finished: Path) -> None:
    with pytest.raises(ExperimentError, match="mlflow at nonsense://here"):
        export_to_mlflow(finished, "nonsense://here")
