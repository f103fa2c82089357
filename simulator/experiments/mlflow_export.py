"""A finished run in MLflow (https://mlflow.org): one MLflow run for each strategy and seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from simulator.errors import ExperimentError
from simulator.experiments.comparison import FinishedRun
from simulator.experiments.report import REPORT
from simulator.experiments.runner import EXPERIMENT, RESULT, RUN

_FIGURES = (
    "seconds",
    "bytes_up",
    "bytes_down",
    "milliwatt_hours",
    "flash_erases",
    "most_flash_wear",
)
_LONGEST_VALUE = 500
"""Of a parameter's characters that every version of MLflow's stores takes."""


def export_to_mlflow(folder: Path, to: str) -> int:
    """Write the cells of a run to a tracking server or store; returns how many there are.

    Args:
        folder: of the run.
        to: URI as MLflow has them, such as ``http://127.0.0.1:5000``; or a folder, which gets a
            database ``mlflow.db`` and the files.

    Raises: ExperimentError where MLflow isn't installed or doesn't take it.
    """
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ModuleNotFoundError:
        raise ExperimentError(
            "mlflow isn't installed; pip install 'tinyfleet[mlflow]', or read result.json and the "
            "Parquet files beside it"
        ) from None
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    finished = FinishedRun.read(folder, folder.resolve().name)
    place = None if "://" in to else Path(to).resolve()
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{place / 'mlflow.db'}" if place else to
    files = (place / "files").as_uri() if place else None
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        name = finished.experiment["name"]
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name, files)
        for cell in finished.result["cells"]:
            _export_cell(client, experiment, finished, cell, folder)
    except (MlflowException, OSError) as error:
        raise ExperimentError(f"mlflow at {to}: {error}") from None
    return len(finished.result["cells"])


def _export_cell(
    client: Any, experiment: str, finished: FinishedRun, cell: Mapping[str, Any], folder: Path
) -> None:
    from mlflow.entities import Metric, Param

    name = f"{finished.label}/{cell['strategy']}-{cell['seed']}"
    run = client.create_run(experiment, run_name=name).info
    strategy = finished.experiment["strategies"][cell["strategy"]]
    parameters = {
        "strategy": cell["strategy"],
        "seed": cell["seed"],
        **dict(_flat("", strategy)),
        **dict(_flat("world.", finished.experiment["world"])),
    }
    metrics = [
        Metric(name, value, run.start_time, point["training_round"])
        for point in cell["curve"]
        for name, value in _metrics(point)
    ]
    told = [Param(name, str(value)[:_LONGEST_VALUE]) for name, value in parameters.items()]
    for start in range(0, max(len(metrics), len(told)), 100):
        client.log_batch(run.run_id, metrics[start : start + 100], told[start : start + 100])
    for file in (RESULT, EXPERIMENT, RUN, REPORT):
        if (folder / file).exists():
            client.log_artifact(run.run_id, str(folder / file))
    client.set_terminated(run.run_id, "FINISHED" if cell["state"] == "finished" else "FAILED")


def _metrics(point: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values; the step is the training round."""
    for group, prefix in (("accuracy", "accuracy_"), ("never_trained", "never_trained_")):
        for name, value in (point[group] or {}).items():
            if name != "devices":
                yield prefix + name, float(value)
    for name in _FIGURES:
        yield name, float(point[name])


def _flat(prefix: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Fields of sections by their dotted paths."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}{name}.", value)
        else:
            yield f"{prefix}{name}", value
