"""Pipelines of scikit-learn as skl2onnx writes them: scaler, network, label, probabilities.

`tests/codegen/models/make_sklearn_models.py` wrote the files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from codegen.graph.floats import FloatGraph
from codegen.importer.model import import_model
from codegen.program.lowering import lower
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.interpreter import Interpreter
from tests.codegen.onnxruntime_oracle import run
from tests.codegen.random_graphs import full_plan

MODELS = Path(__file__).parents[1] / "models"
DIGITS = load_digits(return_X_y=True)[0][:400].astype(np.float32)


def said_by_onnxruntime(name: str, x: NDArray) -> NDArray:
    model = onnx.load(MODELS / f"{name}.onnx")
    return np.asarray(run(model, x, [model.graph.output[0].name])[0])


def said_by_the_device(graph: FloatGraph, x: NDArray) -> NDArray:
    quantized = quantize(graph, x[::2].reshape(-1, x.shape[1], 1, 1))
    interpreter = Interpreter(lower(quantized, full_plan(quantized)))
    codes = quantize_input(quantized, x.reshape(len(x), 1, 1, -1))
    return np.array([interpreter.score(sample, 0) for sample in codes])


def test_ten_classes_with_a_dictionary_of_probabilities() -> None:
    graph = import_model(MODELS / "sklearn_digits.onnx")
    assert graph.loss_choice is not None
    assert graph.loss_choice.loss == "cross-entropy"
    assert "'output_label', 'output_probability' are made" in graph.loss_choice.output_because
    assert graph.loss_choice.class_names == ()  # as they are numbered
    classes = said_by_the_device(graph, DIGITS)
    assert (classes == said_by_onnxruntime("sklearn_digits", DIGITS)).mean() >= 0.95


def test_a_yes_or_no_whose_labels_are_words() -> None:
    graph = import_model(MODELS / "sklearn_high.onnx")
    assert graph.loss_choice is not None
    assert (graph.loss_choice.loss, graph.head.bias.size) == ("binary", 1)
    # Classes of scikit-learn are in alphabetic order: yes is low.
    assert graph.loss_choice.class_names == ("high", "low")
    words = np.array(graph.loss_choice.class_names)[said_by_the_device(graph, DIGITS)]
    assert (words == said_by_onnxruntime("sklearn_high", DIGITS)).mean() >= 0.95
    assert {"high", "low"} == set(words)
