"""Exported models of every family after onnxruntime's `quantize_static`, in its usual settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from codegen.arithmetic.layers import logit_scale
from codegen.graph.floats import Coding, FloatGraph
from codegen.graph.ir import Graph
from codegen.importer.model import import_model
from codegen.operators.average_pool import AveragePool
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.requantize import Requantize
from codegen.program.lowering import lower
from codegen.program.plans import default_plans
from codegen.quantization.calibration import uncoded
from codegen.quantization.quantize import quantize, quantize_input
from codegen.reference.interpreter import Interpreter
from tests.codegen.exported import MODELS, exported
from tests.codegen.int8_network import int8_outputs
from tests.codegen.models.patterns import patterns
from tests.codegen.onnxruntime_oracle import agreement, outputs, quantize_file

FAMILIES = sorted(path.name.removesuffix("_dynamo.onnx") for path in MODELS.glob("*_dynamo.onnx"))
# The first operations of this one, on its input, are none that onnxruntime quantizes.
QUANTIZED = [name for name in FAMILIES if name != "preactivation"]


def quantized(
    family: str, folder: Path, *, exporter: str, activation: QuantType, symmetric: bool,
    per_channel: bool,
) -> tuple[Path, np.ndarray]:  # fmt: skip
    """The model as onnxruntime quantizes it, and the samples it was calibrated with."""
    source, target = MODELS / f"{family}_{exporter}.onnx", folder / "quantized.onnx"
    shape = exported(source.name).sample_shape
    samples = np.random.default_rng(3).normal(size=(24, *shape)).astype(np.float32)
    quantize_file(
        source, target, samples, activation=activation, symmetric=symmetric, per_channel=per_channel
    )
    return target, samples


def outputs_on_the_device(float_graph: FloatGraph, graph: Graph, x: np.ndarray) -> np.ndarray:
    interpreter = Interpreter(lower(graph, default_plans(graph)[0]))
    codes = quantize_input(graph, np.moveaxis(float_graph.arrange(x), 1, -1))
    rows = []
    for sample in codes:
        interpreter.score(sample, 0)
        rows.append(interpreter.logits * logit_scale(graph))
    return np.stack(rows)


@pytest.mark.parametrize("family", QUANTIZED)
@pytest.mark.parametrize(
    ("exporter", "activation", "symmetric", "per_channel"),
    [
        ("dynamo", QuantType.QInt8, False, True),
        ("script", QuantType.QUInt8, False, False),
        ("script", QuantType.QInt8, True, True),
    ],
    ids=["int8 per channel", "uint8 per tensor", "symmetric"],
)
def test_a_quantized_export_gives_onnxruntimes_outputs(
    family: str,
    exporter: str,
    activation: QuantType,
    symmetric: bool,
    per_channel: bool,
    tmp_path: Path,
) -> None:
    path, samples = quantized(
        family, tmp_path, exporter=exporter, activation=activation, symmetric=symmetric,
        per_channel=per_channel,
    )  # fmt: skip
    float_graph = exported(family, path)
    # It leaves a mean's input uncoded: MobileNetV3's last activation.
    measured = float_graph.arrange(samples) if uncoded(float_graph) else None
    graph = quantize(float_graph, measured)
    x = samples[:6]
    expected = outputs(onnx.load(path), x)
    if graph.ending.loss == "mse":
        expected = np.moveaxis(
            float_graph.arrange(expected).reshape(len(x), *float_graph.shapes[float_graph.input]),
            1, -1,
        ).reshape(len(x), -1)  # fmt: skip
    got = outputs_on_the_device(float_graph, graph, x)
    # onnxruntime rounds its outputs to 8 bits (1/510 of their range at most), we don't; single
    # steps of difference come from floats that land on the other side of a half.
    assert np.abs(got - expected).max() < 0.03 * np.ptp(expected)


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_script", "resnet8_dynamo", "keras_pictures", "ds_cnn_script"]
)
def test_samples_that_nobody_has_seen_get_the_quantized_files_classes(
    name: str, tmp_path: Path
) -> None:
    source, target = MODELS / f"{name}.onnx", tmp_path / "quantized.onnx"
    original = exported(source.name)
    shape, classes = original.sample_shape, original.head.bias.size
    seen, _ = patterns(shape, classes, 48, seed=1)
    x, labels = patterns(shape, classes, 100, seed=2)
    quantize_file(source, target, seen)
    expected = outputs(onnx.load(target), x)
    assert (expected.argmax(axis=1) == labels).mean() > 0.6
    assert agreement(int8_outputs(import_model(target), x, seen), expected) >= 0.95


def test_activations_coded_symmetrically_keep_their_lower_end(tmp_path: Path) -> None:
    path, _ = quantized(
        "mobilenet_v1", tmp_path, exporter="dynamo", activation=QuantType.QInt8, symmetric=True,
        per_channel=True,
    )  # fmt: skip
    graph = quantize(import_model(path), None)
    bends = [op for op in graph.ops if isinstance(op, Requantize)]
    assert len(bends) == len(graph.convolutions)
    assert all((op.low, op.high) == (0, 127) for op in bends)


def test_a_mean_with_a_scale_of_its_own_keeps_it(tmp_path: Path) -> None:
    path, _ = quantized(
        "ds_cnn", tmp_path, exporter="dynamo", activation=QuantType.QInt8, symmetric=False,
        per_channel=True,
    )  # fmt: skip
    kept = import_model(path)
    pool = next(op for op in kept.ops if isinstance(op, GlobalAveragePool))
    assert any(isinstance(op, GlobalAveragePool) for op in quantize(kept, None).ops)
    finer = Coding(kept.codings[pool.input].scale / 3, -128)
    own = dataclasses.replace(kept, codings={**kept.codings, pool.output: finer})
    graph = quantize(own, None)
    means = [op for op in graph.ops if isinstance(op, AveragePool)]
    assert [op.window for op in means] == [kept.shapes[pool.input][1:]]
    assert graph.tensors[means[0].output].scale == finer.scale
