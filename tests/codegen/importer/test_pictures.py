"""Outputs that no matrix makes: pictures, in the order of the file, and what is refused of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import FloatTensorOutput
from codegen.importer.model import import_proto
from codegen.operators.execution import evaluate
from codegen.quantization.quantize import quantize, quantize_input
from codegen.quantization.report import simulate
from tests.codegen.onnxruntime_oracle import run


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def conv(source: str, weight: str, result: str, around: int = 1) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, weight], [result], result, pads=[around] * 4)


def transposed(source: str, result: str, *order: int) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [result], result, perm=[0, *order])


def model(
    *nodes: onnx.NodeProto, shape: tuple[int, ...] = (2, 6, 6), **constants: NDArray
) -> onnx.ModelProto:
    """Layers with weights w (2 to 4 channels) and v (back to 2); the last node makes the output."""
    values = {"w": normal(4, 2, 3, 3), "v": normal(2, 4, 3, 3), **constants}
    rank = [None] * (1 if nodes[-1].op_type == "Reshape" else 3)
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, ["batch", *rank])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    return proto


LAYERS = (conv("x", "w", "y"), helper.make_node("Relu", ["y"], ["r"]), conv("r", "v", "z"))
CHANNELS_LAST = model(
    transposed("x", "first", 3, 1, 2),
    conv("first", "w", "y"),
    helper.make_node("Relu", ["y"], ["r"]),
    conv("r", "v", "z"),
    transposed("z", "last", 2, 3, 1),
    shape=(6, 5, 2),
)


@pytest.mark.parametrize(
    "proto",
    [
        model(*LAYERS),
        model(*LAYERS, helper.make_node("Tanh", ["z"], ["bent"])),
        model(*LAYERS, helper.make_node("Sigmoid", ["z"], ["bent"])),
        model(*LAYERS, helper.make_node("Add", ["z", "x"], ["sum"])),
        model(*LAYERS, helper.make_node("Mul", ["z", "c"], ["scaled"]), c=normal(2, 1, 1)),
        model(*LAYERS, helper.make_node("Reshape", ["z", "s"], ["flat"]), s=np.array([-1, 72])),
        model(*LAYERS, transposed("z", "turned", 1, 3, 2)),
        CHANNELS_LAST,
    ],
    ids=["plain", "tanh", "sigmoid", "residual", "scaled", "flat", "turned", "channels last"],
)
def test_a_picture_of_the_inputs_shape_reconstructs_it_in_its_order(proto: onnx.ModelProto) -> None:
    flat = proto.graph.node[-1].op_type == "Reshape"  # could be a classifier's: has to be said
    graph = import_proto(proto, loss="mse" if flat else None)
    assert isinstance(graph.ending, FloatTensorOutput)
    assert graph.ending.loss == "mse"
    x = normal(16, *graph.sample_shape, seed=4)
    expected = graph.arrange(run(proto, x)[0].reshape(x.shape))
    arranged = graph.arrange(x)
    got = evaluate(graph, arranged)[graph.ending.output]
    np.testing.assert_allclose(got, expected.reshape(16, -1), atol=1e-4)
    quantized = quantize(graph, arranged)
    codes = quantize_input(quantized, np.moveaxis(arranged, 1, -1))
    made = simulate(quantized, codes)[quantized.ending.name]
    wanted = np.moveaxis(expected, 1, -1).reshape(16, -1)
    assert ((made - wanted) ** 2).mean() < 0.005 * wanted.var()


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (model(conv("x", "w", "y")), "'y' has 4 x 6 x 6.*own input only: say --loss none.*Gemm"),
        (
            model(
                *LAYERS,
                helper.make_node("Pad", ["z", "p"], ["wide"]),
                p=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            ),
            "zeros around it.*without the Pad",
        ),
        (
            model(conv("x", "whole", "y", 0), helper.make_node("Relu", ["y"], ["r"]),
                  whole=normal(5, 2, 6, 6)),
            "'y', with an activation; a model must end in a Gemm",
        ),
        (model(conv("x", "w", "y"), shape=(2, 160, 160)), "102400 values.*65535 at most"),
    ],
    ids=["other size", "padded", "clamped vector", "too large"],
)  # fmt: skip
def test_what_no_device_can_be_trained_for_is_refused_with_the_remedy(
    proto: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        import_proto(proto)


def test_a_map_of_classes_is_inferred_without_a_loss_as_the_message_says() -> None:
    proto = model(conv("x", "w", "y"))
    graph = import_proto(proto, loss="none")
    quantized = quantize(graph, normal(32, 2, 6, 6))
    x = normal(8, 2, 6, 6, seed=1)
    codes = quantize_input(quantized, np.moveaxis(x, 1, -1))
    made = simulate(quantized, codes)[quantized.ending.name].reshape(8, 6, 6, 4)
    assert (made.argmax(axis=-1) == run(proto, x)[0].argmax(axis=1)).mean() > 0.97
