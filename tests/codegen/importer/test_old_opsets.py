"""Files of opsets before those that the importer knows: converted, and said so, or refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from codegen.errors import ModelError
from codegen.importer.model import import_proto
from tests.codegen.importer.test_model import assert_equals_onnxruntime, model, normal


def old_model(opset: int) -> onnx.ModelProto:
    """Operators as they were before opset 13, with constants among the inputs as then."""
    constants: dict[str, NDArray] = {
        "w": normal(8, 3, 3, 3),
        "s": normal(8, seed=1),
        "b": normal(8, seed=2),
        "m": normal(8, seed=3),
        "v": np.abs(normal(8, seed=4)) + 0.5,
        "hw": normal(4, 8, seed=8),
        "hb": normal(4, seed=9),
        "flat": np.array([0, -1]),
    }
    bounds, borders = [0.0, 6.0], [0, 0, 1, 1, 0, 0, 1, 1]
    if opset < 11:
        clip = helper.make_node("Clip", ["bn"], ["r"], "clip", min=bounds[0], max=bounds[1])
        pad = helper.make_node("Pad", ["r"], ["p"], "pad", pads=borders)
    else:
        constants |= {"low": np.float32(bounds[0]), "high": np.float32(bounds[1])}
        constants["borders"] = np.array(borders)
        clip = helper.make_node("Clip", ["bn", "low", "high"], ["r"], "clip")
        pad = helper.make_node("Pad", ["r", "borders"], ["p"], "pad")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "s", "b", "m", "v"], ["bn"], "norm"),
        clip,
        pad,
        helper.make_node("AveragePool", ["p"], ["q"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("ReduceMean", ["q"], ["t"], "mean", axes=[2, 3], keepdims=1),
        helper.make_node("Squeeze", ["t"], ["u"], "squeeze", axes=[3]),
        helper.make_node("Unsqueeze", ["u"], ["z"], "unsqueeze", axes=[3]),
        helper.make_node("Reshape", ["z", "flat"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "hw", "hb"], ["logits"], "head", transB=1),
    ]
    proto = model(nodes, constants, opset=opset)
    proto.graph.input.extend(
        helper.make_tensor_value_info(entry.name, entry.data_type, entry.dims)
        for entry in proto.graph.initializer
    )
    return proto


@pytest.mark.parametrize("opset", [7, 9, 10, 11, 12])
def test_files_of_old_opsets_are_converted_which_is_noted(opset: int) -> None:
    proto = old_model(opset)
    assert_equals_onnxruntime(proto)
    assert import_proto(proto).notes == (
        f"the model's ONNX opset {opset} was converted to opset 13",
    )


def test_an_opset_that_cannot_be_converted_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"opset 6, which can't be converted.*opset 13 or later"):
        import_proto(old_model(6))


@pytest.mark.parametrize(
    ("operator", "opset", "mode", "scales"),
    [
        ("Upsample", 9, "linear", (1, 1, 2, 3)),
        ("Upsample", 9, "nearest", (1, 1, 1.5, 2)),
        ("Resize", 10, "linear", (1, 1, 2, 2)),
        ("Resize", 10, "nearest", (1, 1, 0.3, 2)),
    ],
)
def test_pixels_lie_where_they_did_before_a_resize_could_say_so(
    operator: str, opset: int, mode: str, scales: tuple[float, ...]
) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node(operator, ["a", "scales"], ["b"], "larger", mode=mode),
        helper.make_node("Conv", ["b", "v"], ["c"], "behind", strides=[2, 2]),
        helper.make_node("GlobalMaxPool", ["c"], ["d"], "pool"),
        helper.make_node("Flatten", ["d"], ["e"], "flatten"),
        helper.make_node("Gemm", ["e", "hw", "hb"], ["logits"], "head"),
    ]
    constants = {
        "w": normal(4, 3, 1, 1), "scales": np.array(scales, np.float32), "v": normal(8, 4, 2, 2),
        "hw": normal(8, 5), "hb": normal(5),
    }  # fmt: skip
    assert_equals_onnxruntime(model(nodes, constants, shape=("batch", 3, 9, 8), opset=opset))
