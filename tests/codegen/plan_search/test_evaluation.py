"""A bundle on the user's own samples: figures by their definitions, and training that helps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from codegen.compile import compile_model
from codegen.errors import CalibrationError, ModelError
from codegen.firmware.bundle import Bundle
from codegen.graph.ir import Loss
from codegen.plan_search.evaluation import Evaluation, evaluate_bundle, figures
from codegen.plan_search.samples import Samples
from codegen.plan_search.training import Schedule
from tests.codegen import onnxruntime_oracle
from tests.codegen.dense_network import dense_network
from tests.codegen.exported import MODELS
from tests.codegen.random_graphs import random_graph, random_target_graph

CDDL = Path(__file__).parents[3] / "fleet" / "protocol" / "tinyfleet.cddl"
RANDOM = np.random.default_rng(4)
X = RANDOM.normal(size=(240, 6)).astype(np.float32)


def evaluated(
    outputs: int, y: NDArray, folder: Path, *tail: str, loss: Loss | None = None, epochs: int = 12
) -> tuple[Evaluation, Bundle]:
    """A fresh network compiled for ``y``, and trained for it."""
    model, data = folder / "net.onnx", folder / "own.npz"
    onnx.save(dense_network((6,), outputs, *tail), model)
    np.savez(data, x=X, y=y)
    bundle = compile_model(model, "stm32f746", None, data, folder / "bundle", CDDL, loss=loss)
    plan = bundle.manifest.plan("full")
    return evaluate_bundle(bundle, plan, data, Schedule(epochs, 0.02), model), bundle


def test_answers_of_yes_or_no_are_learnt(tmp_path: Path) -> None:
    rows = np.stack([X[:, 0] > X[:, 1], X[:, 2] > 0, X[:, 3] + X[:, 4] > 0.5], axis=1)
    found, bundle = evaluated(3, rows, tmp_path, "Sigmoid", epochs=40)
    assert bundle.manifest.model.labels == 8
    assert found.after is not None
    assert found.float_model is not None
    assert found.before.agreement is not None
    assert found.before.agreement > 0.97
    assert found.before.accuracy == pytest.approx(found.float_model.accuracy, abs=0.03)
    assert found.before.loss == pytest.approx(found.float_model.loss, rel=0.02)
    assert found.after.accuracy is not None
    assert found.after.accuracy > found.before.accuracy + 0.4
    assert found.after.loss < found.before.loss / 2
    assert found.after.confusion is not None
    assert [sum(map(sum, table)) for table in found.after.confusion] == [found.after.samples] * 3
    assert found.trained_samples + found.after.samples == len(X)


def test_targets_of_several_outputs_are_learnt_in_their_order(tmp_path: Path) -> None:
    targets = np.stack([X[:, 0] + X[:, 1], 3 * X[:, 2], X[:, 3] - 1], axis=1)
    found, _ = evaluated(3, targets, tmp_path)
    assert found.after is not None
    assert found.float_model is not None
    assert found.before.loss == pytest.approx(found.float_model.loss, rel=0.02)
    assert found.after.explained is not None
    assert found.after.explained > 0.9
    assert found.after.accuracy is None


def test_one_target_and_a_reconstruction(tmp_path: Path) -> None:
    found, _ = evaluated(1, X[:, 0] * 5, tmp_path)
    assert found.after is not None
    assert found.after.explained is not None
    assert found.after.explained > 0.9
    (tmp_path / "again").mkdir()
    found, _ = evaluated(6, X, tmp_path / "again")
    assert found.after is not None
    assert found.after.loss < found.before.loss / 2
    assert found.before.loss == pytest.approx(found.float_model.loss, rel=0.02)


def test_pictures_that_a_convolution_makes_are_measured_as_the_float_model_is_and_learnt(
    tmp_path: Path,
) -> None:
    model, data = MODELS / "autoencoder_copies_script.onnx", tmp_path / "own.npz"
    shades = RANDOM.uniform(size=(80, 2, 1, 1)) * RANDOM.uniform(size=(80, 1, 12, 1))
    np.savez(data, x=np.repeat(shades, 8, axis=3).astype(np.float32))
    bundle = compile_model(model, "stm32f746", None, data, tmp_path / "bundle", CDDL)
    manifest = bundle.manifest.model
    assert manifest.output is not None
    assert (manifest.output.shape, manifest.classes) == ((12, 8, 2), 192)
    assert not any(plan.plan["head"] for plan in bundle.manifest.plans)
    plan = bundle.manifest.plan("full")
    found = evaluate_bundle(bundle, plan, data, Schedule(20, 0.3), model)
    assert found.after is not None
    assert found.float_model is not None
    assert found.before.loss == pytest.approx(found.float_model.loss, rel=0.02)
    assert found.after.loss < found.before.loss / 2


@pytest.mark.parametrize("louder", [1.0, 2.0])
def test_the_float_model_is_measured_on_the_samples_as_they_are_given(
    louder: float, tmp_path: Path
) -> None:
    y = np.where(X[:, 0] > X[:, 1], 1, 2 * (X[:, 2] > 0))
    _, bundle = evaluated(3, y, tmp_path, epochs=0)
    model, data = tmp_path / "net.onnx", tmp_path / "own.npz"
    np.savez(data, x=louder * X, y=y)
    found = evaluate_bundle(bundle, bundle.manifest.plans[0], data, Schedule(0), model)
    exact = onnxruntime_oracle.outputs(onnx.load(model), louder * X)
    losses = np.log(np.exp(exact).sum(axis=1)) - exact[np.arange(len(X)), y]
    assert found.float_model is not None
    assert found.float_model.accuracy == (exact.argmax(axis=1) == y).mean()
    assert found.float_model.loss == pytest.approx(losses.mean(), rel=1e-5)


def test_a_float_autoencoder_is_measured_against_the_samples_as_they_are_given(
    tmp_path: Path,
) -> None:
    _, bundle = evaluated(6, X, tmp_path, epochs=0)
    model, data = tmp_path / "net.onnx", tmp_path / "own.npz"
    np.savez(data, x=2 * X)
    found = evaluate_bundle(bundle, bundle.manifest.plans[0], data, Schedule(0), model)
    exact = onnxruntime_oracle.outputs(onnx.load(model), 2 * X)
    assert found.float_model is not None
    assert found.float_model.loss == pytest.approx(((exact - 2 * X) ** 2).mean(), rel=1e-5)


def test_without_epochs_all_samples_are_measured(tmp_path: Path) -> None:
    found, bundle = evaluated(3, np.arange(240) % 3, tmp_path, epochs=0)
    assert (found.before.samples, found.after) == (240, None)
    other = tmp_path / "other.onnx"
    onnx.save(dense_network((6,), 3, "Softmax"), other)
    plan, own = bundle.manifest.plans[0], tmp_path / "own.npz"
    with pytest.raises(ModelError, match="isn't the file that"):
        evaluate_bundle(bundle, plan, own, Schedule(0), other)
    np.savez(own, x=X, y=np.arange(240) % 4)
    with pytest.raises(CalibrationError, match="y has class 3; the model's 3 classes are 0 … 2"):
        evaluate_bundle(bundle, plan, own, Schedule(0))
    np.savez(own, x=X)
    with pytest.raises(CalibrationError, match="no array 'y'"):
        evaluate_bundle(bundle, plan, own, Schedule(0))


def test_figures_of_classes_are_those_of_their_definitions() -> None:
    graph, codes = random_graph(7)
    classes = graph.head.bias.size
    labels = RANDOM.integers(0, classes, 24)
    outputs = RANDOM.normal(0, 3, (24, classes))
    found = figures(graph, outputs, Samples(codes, labels))
    picked = outputs.argmax(axis=1)
    assert found.accuracy == (picked == labels).mean()
    assert found.confusion is not None
    assert found.confusion[0][labels[0]][picked[0]] >= 1
    assert sum(found.confusion[0][i][i] for i in range(classes)) == (picked == labels).sum()
    chances = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert found.loss == pytest.approx(-np.log(chances[np.arange(24), labels]).mean())


def test_figures_of_targets_are_those_of_their_definitions() -> None:
    graph, samples = random_target_graph(5, "mse")
    size, scale = graph.tensors[graph.input].size, graph.head.target_scale
    wanted = scale * np.ascontiguousarray(samples[:, size:]).view("<i2")
    found = figures(graph, wanted + 0.5, Samples(samples, np.zeros(24, np.int64)))
    assert found.loss == pytest.approx(0.25)
    assert found.mean_absolute_error == pytest.approx(0.5)
    assert found.explained == pytest.approx(1 - 0.25 / wanted.var(axis=0).mean())
