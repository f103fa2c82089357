"""Random ONNX models, all the way: host library and image compute what the interpreter does."""

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from codegen.arithmetic.layers import convolution_arithmetic
from codegen.graph.ir import Conv, DepthwiseConv, Padding
from codegen.importer.model import import_model, import_proto
from codegen.program.plans import Plan
from codegen.quantization.calibration_set import load_calibration
from codegen.quantization.quantize import quantize, quantize_input
from tests.codegen.quantized_network import random_quantized
from tests.codegen.random_graphs import full_plan, padded_graph, random_gated_graph, random_plan
from tests.end_to_end.engines import assert_trains_to_the_same_bits, toolchain_or_skip

CLASSES = 5


class _Maker:
    """Writes a random network node by node."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = int(self.random.integers(1, 4))
        self.last = "x"

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def node(self, kind: str, inputs: list[str], **attributes: object) -> str:
        output = f"t{len(self.nodes)}"
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=name, **attributes))
        return output

    def convolution(self, outputs: int, kernel: int, stride: int, depthwise: bool) -> None:
        group = self.channels if depthwise else 1
        outputs = self.channels if depthwise else outputs
        shape = (outputs, self.channels // group, kernel, kernel)
        weight = self.random.normal(0, (shape[1] * kernel**2) ** -0.5, shape)
        pads = [kernel // 2] * 4
        self.last = self.node(
            "Conv",
            [self.last, self.constant(weight), self.constant(self.random.normal(0, 0.2, outputs))],
            group=group,
            strides=[stride, stride],
            pads=pads,
            kernel_shape=[kernel, kernel],
        )
        self.channels = outputs
        if self.random.random() < 0.7:
            parts = [
                self.random.uniform(0.5, 1.5, outputs),
                self.random.normal(0, 0.2, outputs),
                self.random.normal(0, 0.2, outputs),
                self.random.uniform(0.5, 1.5, outputs),
            ]
            self.last = self.node("BatchNormalization", [self.last, *map(self.constant, parts)])

    def activation(self) -> None:
        match self.random.choice(["relu", "clip", "swish", "hard swish", "leaky"]):
            case "relu":
                self.last = self.node("Relu", [self.last])
            case "clip":
                ends = [self.constant(np.array(value)) for value in (0.0, 6.0)]
                self.last = self.node("Clip", [self.last, *ends])
            case "swish":
                self.last = self.node("Mul", [self.last, self.node("Sigmoid", [self.last])])
            case "hard swish":
                self.last = self.node("HardSwish", [self.last])
            case "leaky":
                self.last = self.node("LeakyRelu", [self.last], alpha=0.1)

    def block(self) -> None:
        """An inverted bottleneck, with a shortcut where its shape allows one."""
        start, channels = self.last, self.channels
        stride = int(self.random.integers(1, 3))
        self.convolution(int(self.random.integers(3, 12)), 1, 1, depthwise=False)
        self.activation()
        self.convolution(0, int(self.random.choice([3, 5])), stride, depthwise=True)
        self.activation()
        outputs = channels if self.random.random() < 0.6 else int(self.random.integers(2, 9))
        self.convolution(outputs, 1, 1, depthwise=False)
        if stride == 1 and outputs == channels:
            self.last = self.node("Add", [start, self.last])

    def model(self, size: int) -> onnx.ModelProto:
        channels = self.channels
        self.convolution(int(self.random.integers(3, 9)), 3, int(self.random.integers(1, 3)), False)
        self.activation()
        for _ in range(int(self.random.integers(1, 4))):
            self.block()
        self.last = self.node("GlobalAveragePool", [self.last])
        self.last = self.node("Flatten", [self.last])
        weight = self.random.normal(0, 0.5, (CLASSES, self.channels))
        bias = self.constant(self.random.normal(0, 0.2, CLASSES))
        self.node("Gemm", [self.last, self.constant(weight), bias], transB=1)
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, size, size])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CLASSES])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "board", "compiler"),
    [
        (1, "stm32f746", "gcc"),
        (2, "stm32f407", "zig"),
        (3, "stm32f746", "zig"),
        (4, "stm32f407", "gcc"),
    ],
)
def test_a_random_model_trains_to_the_same_bits_everywhere(
    seed: int, board: str, compiler: Literal["gcc", "zig"], tmp_path: Path
) -> None:
    toolchain = toolchain_or_skip(compiler)
    size = 9 + seed
    model = _Maker(seed).model(size)
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "model.onnx")
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    values = np.random.default_rng(seed).normal(0, 1, (16, channels, size, size))
    np.savez(tmp_path / "calibration.npz", x=values.astype(np.float32))
    calibration = load_calibration(tmp_path / "calibration.npz")
    graph = quantize(import_model(tmp_path / "model.onnx"), calibration)
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, seed), random_plan(graph, seed + 100)],
        quantize_input(graph, np.moveaxis(calibration, 1, -1)),
        range(4),
        board=board,
        toolchain=toolchain,
        folder=tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("padding", "board", "compiler"),
    [
        ((0, 0, 1, 1), "stm32f746", "gcc"),
        ((0, 0, 0, 1), "stm32f407", "zig"),
        ((0, 0, 1, 1), "mps3-an547", "zig"),
    ],
)
def test_kernels_of_one_tap_see_padding_at_the_end_everywhere(
    padding: tuple[int, int, int, int],
    board: str,
    compiler: Literal["gcc", "zig"],
    tmp_path: Path,
) -> None:
    graph, samples = padded_graph(Padding(*padding))
    assert_trains_to_the_same_bits(
        graph,
        [Plan("head", (), (), True, "q8.8"), full_plan(graph), random_plan(graph, 1)],
        samples,
        range(4),
        board=board,
        toolchain=toolchain_or_skip(compiler),
        folder=tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "board", "compiler"),
    [
        (34, "stm32f746", "gcc"),
        (23, "stm32f407", "zig"),
        (34, "mps2-an383", "zig"),
        (23, "mps3-an547", "gcc"),
    ],
)
def test_a_quantized_model_with_channels_of_any_scales_trains_to_the_same_bits_everywhere(
    seed: int, board: str, compiler: Literal["gcc", "zig"], tmp_path: Path
) -> None:
    model, x = random_quantized(seed)
    graph = quantize(import_proto(model), None)
    raised = [convolution_arithmetic(graph, op).pre_shift for op in graph.convolutions]
    assert sum(bool(shifts.any()) for shifts in raised) >= 2
    assert {type(op) for op in graph.convolutions} == {Conv, DepthwiseConv}
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, seed)],
        quantize_input(graph, np.moveaxis(x, 1, -1)),
        range(4),
        board=board,
        toolchain=toolchain_or_skip(compiler),
        folder=tmp_path,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "board", "compiler"), [(3, "stm32f746", "gcc"), (8, "stm32f407", "zig")]
)
def test_gates_choices_and_constants_train_to_the_same_bits_everywhere(
    seed: int, board: str, compiler: Literal["gcc", "zig"], tmp_path: Path
) -> None:
    graph, samples = random_gated_graph(seed)
    assert_trains_to_the_same_bits(
        graph,
        [full_plan(graph), random_plan(graph, seed)],
        samples,
        range(4),
        board=board,
        toolchain=toolchain_or_skip(compiler),
        folder=tmp_path,
    )
