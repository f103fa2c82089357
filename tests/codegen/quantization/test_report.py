"""The report's figures, recomputed from whole tensors, and its file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.arithmetic.layers import logit_scale
from codegen.errors import BundleError
from codegen.graph import ir
from codegen.graph.floats import FloatGraph
from codegen.importer.model import import_model
from codegen.operators.add import Add
from codegen.operators.execution import evaluate, evaluate_op, output_of
from codegen.quantization import calibration
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import (
    Comparison,
    ErrorFigures,
    LayerError,
    compare,
    load_report,
    simulate,
)
from tests.codegen.exported import exported
from tests.codegen.quantization.uneven_network import network, samples

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits"


@dataclass(frozen=True)
class Digits:
    graph: FloatGraph
    quantized: ir.Graph
    x: NDArray[np.float32]
    exact: dict[str, NDArray[np.float64]]
    comparison: Comparison


@pytest.fixture(scope="module")
def digits() -> Digits:
    graph = import_model(EXAMPLE / "digits.onnx")
    x = load_calibration(EXAMPLE / "calibration.npz")[:50]
    quantized = quantize(graph, x)
    return Digits(graph, quantized, x, evaluate(graph, x), compare(graph, quantized, x))


def expected(exact: NDArray[np.float64], found: NDArray[np.float64]) -> ErrorFigures:
    a, b = exact.ravel(), found.ravel()
    return ErrorFigures(
        sqnr_db=float(20 * np.log10(np.linalg.norm(a) / np.linalg.norm(b - a))),
        cosine=float(np.corrcoef(np.concatenate([a, -a]), np.concatenate([b, -b]))[0, 1]),
        max_abs_error=float(np.abs(b - a).max()),
    )


def assert_close(found: ErrorFigures, wanted: ErrorFigures) -> None:
    assert found.sqnr_db == pytest.approx(wanted.sqnr_db, abs=1e-6)
    assert found.cosine == pytest.approx(wanted.cosine, abs=1e-9)
    assert found.max_abs_error == pytest.approx(wanted.max_abs_error, rel=1e-9)


def test_accumulated_errors_are_those_of_the_whole_int8_network(digits: Digits) -> None:
    graph, quantized, exact = digits.graph, digits.quantized, digits.exact
    found = simulate(quantized, quantize_input(quantized, digits.x.transpose(0, 2, 3, 1)))
    report = digits.comparison
    assert report.samples == len(digits.x)
    assert [layer.layer for layer in report.layers] == [graph.input, *(o.name for o in graph.ops)]
    for layer in report.layers:
        assert_close(layer.accumulated, expected(exact[layer.layer], found[layer.layer]))
    logits = found[quantized.head.name], exact[graph.head.output]
    agreement = np.mean(logits[0].argmax(axis=1) == logits[1].argmax(axis=1))
    assert report.top1_agreement == pytest.approx(agreement)


def test_own_errors_are_those_of_one_layer_with_the_float_networks_inputs_in_int8(
    digits: Digits,
) -> None:
    graph, tensors = digits.quantized, digits.quantized.tensors
    layers = {layer.layer: layer for layer in digits.comparison.layers}
    float_ops = {op.name: op for op in digits.graph.ops}

    def codes(name: str) -> NDArray[np.int64]:
        steps = np.rint(digits.exact[name].transpose(0, 2, 3, 1) / tensors[name].scale)
        return np.clip(steps + tensors[name].zero_point, -128, 127).astype(np.int64)

    def real(name: str, values: NDArray[np.int64]) -> NDArray[np.float64]:
        return (tensors[name].scale * (values - tensors[name].zero_point)).transpose(0, 3, 1, 2)

    for op in graph.ops:
        inputs = [codes(name) for name in ir.inputs_of(op)]
        made = output_of(graph, op, inputs)
        alone = made * logit_scale(graph) if isinstance(op, ir.Head) else real(op.output, made)
        reals = [real(name, given) for name, given in zip(ir.inputs_of(op), inputs, strict=True)]
        assert_close(layers[op.name].own, expected(evaluate_op(float_ops[op.name], reals), alone))


def test_own_errors_of_sums_are_half_a_step_at_most(digits: Digits) -> None:
    """An addition only rounds, but where its inputs were rounded up beyond its range."""
    rows = {row.layer: row for row in digits.comparison.layers}
    sums = [op for op in digits.quantized.ops if isinstance(op, Add)]
    assert sums
    for op in sums:
        step, own = rows[op.name].step, rows[op.name].own.max_abs_error
        assert step is not None
        beyond = sum(digits.quantized.tensors[name].scale / 2 for name in op.inputs)
        assert 0.4 * step < own <= 0.501 * step + beyond
        assert rows[op.name].own.cosine > 0.9999


def test_figures_do_not_depend_on_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = network(), samples(37)
    quantized = quantize(graph, x)
    whole = compare(graph, quantized, x)
    monkeypatch.setattr(calibration, "_LARGEST_BATCH", 5)
    split = compare(graph, quantized, x)
    for one, other in zip(whole.layers, split.layers, strict=True):
        assert_close(one.accumulated, other.accumulated)
        assert_close(one.own, other.own)
    assert whole.top1_agreement == split.top1_agreement


@pytest.mark.parametrize("family", ["fire", "lenet", "autoencoder", "inertial", "preactivation"])
def test_networks_with_every_operation_are_compared_layer_by_layer(family: str) -> None:
    graph = exported(f"{family}_script.onnx")
    random = np.random.default_rng(4)
    x = graph.arrange(random.normal(size=(24, *graph.sample_shape)).astype(np.float32))
    quantized = quantize(graph, x)
    report = compare(graph, quantized, x)
    found = simulate(quantized, quantize_input(quantized, x.transpose(0, 2, 3, 1)))
    outputs = evaluate(graph, x)[graph.head.output]
    if graph.head.loss == "mse":
        assert report.top1_agreement is None
        outputs = outputs.reshape(x.shape).transpose(0, 2, 3, 1).reshape(len(x), -1)
    assert_close(report.layers[-1].accumulated, expected(outputs, found[quantized.head.name]))
    kinds = {layer.kind for layer in report.layers}
    assert kinds == {"Input", *(type(op).__name__ for op in quantized.ops)}
    for layer in report.layers:
        assert layer.own.cosine > 0.999, layer
        assert layer.accumulated.cosine > 0.95, layer
        if layer.kind in ("MaxPool", "Concat"):
            assert layer.own.sqnr_db is None
            assert layer.own.max_abs_error == 0.0


def test_a_network_that_int8_spoils_has_less_agreement() -> None:
    graph, x = network(spread=9.0), samples(200)
    assert compare(graph, quantize(graph, x), x).top1_agreement < 0.9


def test_a_tensor_without_error_has_no_decibels() -> None:
    figures = ErrorFigures(sqnr_db=None, cosine=1.0, max_abs_error=0.0)
    row = LayerError(layer="pool", kind="Pool", step=1.0, accumulated=figures, own=figures)
    assert LayerError.model_validate_json(row.model_dump_json()) == row


def test_a_file_that_is_no_report_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "quantization.json"
    with pytest.raises(BundleError, match="--quantization-report"):
        load_report(path)
    path.write_text('{"model": "m"}')
    with pytest.raises(BundleError, match="is no quantization report"):
        load_report(path)
