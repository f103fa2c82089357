"""The shared MCUNet files: each is taken as it is, with nothing of it lost."""

from __future__ import annotations

import csv

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from codegen.graph.floats import Clamp, FloatConv
from codegen.graph.ir import Conv, DepthwiseConv
from codegen.importer.model import import_model
from codegen.operators.execution import evaluate
from codegen.quantization.quantize import quantize
from tests.shared import SHARED, needs

FILES = {
    kind: SHARED / "models" / f"mcunet-5fps-{kind}.onnx" for kind in ("int8", "head10-int8", "fp32")
}

pytestmark = needs(*FILES.values())


def layers() -> list[dict[str, str]]:
    with (SHARED / "models" / "mcunet-5fps-layers.csv").open(encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["op"] in ("conv", "dw")]


@pytest.mark.parametrize(("kind", "classes"), [("int8", 1000), ("head10-int8", 10)])
def test_scales_zero_points_and_integers_are_those_of_the_file(kind: str, classes: int) -> None:
    graph = quantize(import_model(FILES[kind]), None)
    stored = {
        entry.name: numpy_helper.to_array(entry)
        for entry in onnx.load(FILES[kind]).graph.initializer
    }
    table = layers()
    assert [op.name for op in graph.convolutions] == [row["name"] for row in table]
    assert graph.head.weight.shape[0] == classes
    for op, row in zip(graph.convolutions, table, strict=True):
        output = graph.tensors[op.output]
        assert output.scale == pytest.approx(float(row["out_scale"]), rel=1e-6)
        assert output.zero_point == int(row["out_zero"])
        laid_out = (
            op.weight.transpose(0, 3, 1, 2)
            if isinstance(op, Conv)
            else op.weight.transpose(2, 0, 1)[:, None]
        )
        weight, bias = stored[f"{op.name}.weight"], stored[f"{op.name}.bias"].astype(np.int64)
        assert isinstance(op, (Conv, DepthwiseConv))
        # Channels that are dead at 4e-9, with biases to the ends of int32, mean the same in
        # another scale.
        kept = stored[f"{op.name}.weight_scale"] > 1e-6
        assert kept.sum() >= 0.8 * kept.size
        assert np.array_equal(laid_out[kept], weight[kept]), op.name
        assert np.array_equal(op.bias[kept], bias[kept]), op.name
        scale = stored[f"{op.name}.weight_scale"].astype(np.float64)
        assert np.array_equal(op.weight_scale[kept], scale[kept]), op.name
        steps = (
            graph.tensors[op.input].scale
            / output.scale
            * (op.bias * op.weight_scale - bias * scale)
        )
        assert np.abs(steps).max() <= 1 / 16, op.name


def test_an_int8_head_keeps_the_real_values_of_its_weights_in_q8_8() -> None:
    graph = quantize(import_model(FILES["int8"]), None)
    stored = {
        entry.name: numpy_helper.to_array(entry).astype(np.float64)
        for entry in onnx.load(FILES["int8"]).graph.initializer
        if entry.name.startswith("head.")
    }
    real = stored["head.weight"] * stored["head.weight_scale"].reshape(-1, 1)
    step = graph.head.weight_scale / 256
    assert np.abs(graph.head.weight * step - real).max() <= step / 2 * (1 + 1e-6)
    bias = stored["head.bias"] * stored["head.bias_scale"]
    unit = graph.tensors[graph.head.input].scale * step
    assert np.abs(graph.head.bias * unit - bias).max() <= unit / 2 * (1 + 1e-6)


def test_the_float_file_evaluates_as_the_quantized_one_means_it() -> None:
    exact, coded = import_model(FILES["fp32"]), import_model(FILES["int8"])
    assert [op.name for op in exact.ops] == [op.name for op in coded.ops]
    clamped = [op for op in exact.ops if isinstance(op, FloatConv) and op.clamp == Clamp(0.0, 6.0)]
    assert len(clamped) == len([row for row in layers() if not row["name"].endswith("pw2")])
    x = np.random.default_rng(0).normal(0, 0.4, (1, *exact.sample_shape)).clip(-1, 1)
    one, other = (evaluate(graph, x)[graph.head.output] for graph in (exact, coded))
    assert np.abs(one - other).max() < 0.05 * np.ptp(one)
