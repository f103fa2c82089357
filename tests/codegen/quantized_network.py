"""Quantized networks as files, integer by integer, and what their own arithmetic makes of them.

Tests choose scales, weights and biases of every channel; QuantizeLinear and DequantizeLinear stand
around every operation, as quantizers write them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Code:
    """Scale and zero point of an activation, int8 or uint8."""

    scale: float
    zero: int = 0
    dtype: type = np.uint8


@dataclass(frozen=True, eq=False)
class Channels:
    """Weight codes [O, I/groups, Kh, Kw], and scale and bias of each output channel.

    The bias is int32 in steps of input scale * weight scale, or real numbers.
    """

    weight: Integers
    scale: Sequence[float] | NDArray[np.floating]
    bias: Sequence[float] | NDArray[np.number]
    stored_bias: bool = True


class QuantizedNetwork:
    """A file in the making: each method appends one operation to the last tensor."""

    def __init__(self, shape: tuple[int, ...], code: Code) -> None:
        self.shape = shape
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray] = {}
        self.last = "x"
        self._codes: dict[str, Code] = {}
        self.code("x", code)

    def code(self, tensor: str, code: Code) -> str:
        """Codes ``tensor``: its values are one of 256 from here on."""
        scale, zero, made = f"{tensor}.scale", f"{tensor}.zero", f"{tensor}.coded"
        self.constants |= {scale: np.float32(code.scale), zero: code.dtype(code.zero)}
        self._quantized(tensor, f"{tensor}.q", [scale, zero])
        self._dequantized(f"{tensor}.q", made, [scale, zero])
        self._codes[made], self.last = code, made
        return made

    def conv(
        self,
        name: str,
        channels: Channels,
        code: Code,
        *,
        depthwise: bool = False,
        stride: int = 1,
        pad: int = 0,
        relu: bool = True,
    ) -> str:
        """A convolution, with a Relu behind it."""
        inputs = [self.last, *self._parameters(name, channels)]
        options = {"strides": [stride] * 2, "pads": [pad] * 4}
        if depthwise:
            options["group"] = len(channels.weight)
        self.nodes.append(helper.make_node("Conv", inputs, [name], name, **options))
        made = name
        if relu:
            made = f"{name}.relu"
            self.nodes.append(helper.make_node("Relu", [name], [made], made))
        return self.code(made, code)

    def add(self, name: str, other: str, code: Code) -> str:
        """The sum with an earlier tensor."""
        self.nodes.append(helper.make_node("Add", [self.last, other], [name], name))
        return self.code(name, code)

    def finish(self, channels: Channels) -> onnx.ModelProto:
        """A global pool, coded as its input, and a fully connected layer over it."""
        self.nodes.append(helper.make_node("GlobalAveragePool", [self.last], ["pool"], "pool"))
        pooled = self.code("pool", self._codes[self.last])
        inputs = ["flat", *self._parameters("head", channels)]
        self.nodes += [
            helper.make_node("Flatten", [pooled], ["flat"], "flat"),
            helper.make_node("Gemm", inputs, ["logits"], "head", transB=1),
        ]
        graph = helper.make_graph(
            self.nodes,
            "quantized",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "classes"])],
            [numpy_helper.from_array(np.asarray(v), name) for name, v in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        return model

    def _parameters(self, name: str, channels: Channels) -> list[str]:
        weight, bias = f"{name}.weight", f"{name}.bias"
        scale = np.asarray(channels.scale, np.float32)
        self.constants |= {
            f"{weight}.q": channels.weight.astype(np.int8),
            f"{weight}.scale": scale,
            f"{weight}.zero": np.zeros(len(scale), np.int8),
        }
        self._dequantized(f"{weight}.q", weight, [f"{weight}.scale", f"{weight}.zero"])
        if not channels.stored_bias:
            self.constants[bias] = np.asarray(channels.bias, np.float32)
            return [weight, bias]
        self.constants |= {
            f"{bias}.q": np.asarray(channels.bias).astype(np.int32),
            f"{bias}.scale": np.float32(self._codes[self.last].scale) * scale,
            f"{bias}.zero": np.zeros(len(scale), np.int32),
        }
        self._dequantized(f"{bias}.q", bias, [f"{bias}.scale", f"{bias}.zero"])
        return [weight, bias]

    def _quantized(self, source: str, output: str, code: list[str]) -> None:
        self.nodes.append(helper.make_node("QuantizeLinear", [source, *code], [output], output))

    def _dequantized(self, source: str, output: str, code: list[str]) -> None:
        node = helper.make_node("DequantizeLinear", [source, *code], [output], output, axis=0)
        self.nodes.append(node)


KINDS = ("plain", "zeros of scale 1", "zeros of any scale", "tiny", "wide span", "steep", "sparse")


def random_channels(
    rng: np.random.Generator, shape: tuple[int, ...], source: float, target: float
) -> Channels:
    """Channels of all ``KINDS`` between activations of these scales.

    Biases are within the output's range, or at the ends of int32 where they can't be told in steps
    of the channel's scale; at times they are real numbers.
    """
    outputs, terms = shape[0], int(np.prod(shape[1:]))
    weight = rng.integers(-127, 128, shape)
    scale = target / (source * np.sqrt(terms) * 70) * np.exp(rng.normal(0, 0.4, outputs))
    height = rng.normal(40, 60, outputs) * target
    for c, kind in enumerate(rng.choice(KINDS, outputs)):
        if kind == "zeros of scale 1":
            weight[c], scale[c] = 0, 1.0
        elif kind == "zeros of any scale":
            weight[c], scale[c] = 0, 10 ** rng.uniform(-12, 1)
        elif kind == "tiny":
            weight[c] = rng.integers(-2, 3, shape[1:])
            scale[c] = max(10 ** rng.uniform(-12, -6), abs(height[c]) / (source * 2**31))
        elif kind == "wide span":
            scale[c] = 10 ** rng.uniform(-7, 0)
        elif kind == "steep":
            scale[c] *= 10 ** rng.uniform(0, 3)
        elif kind == "sparse":
            weight[c], scale[c] = rng.integers(-1, 2, shape[1:]), 10 ** rng.uniform(-3, 0)
    steps = np.clip(np.rint(height / (source * scale)), -(2**31), 2**31 - 1)
    stored = bool(rng.random() < 0.75)
    return Channels(weight, scale, steps if stored else steps * source * scale, stored)


def random_quantized(seed: int) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """A network of such channels and samples for it.

    Its first layer sees pixels or signals through a kernel of 1 to 7; a depthwise and a pointwise
    layer, and the sum of both ends, may follow.
    """
    rng = np.random.default_rng([seed, 3])
    pixels = rng.random() < 0.35
    inputs, size = int(rng.integers(1, 5)), int(rng.choice([6, 8, 12]))
    first = Code(1.0) if pixels else Code(0.02, int(rng.integers(-20, 20)), np.int8)
    network = QuantizedNetwork((inputs, size, size), first)
    kernel = min(int(rng.choice([1, 3, 5, 7])), size)
    width = int(rng.integers(2, 9))
    code = Code(float(rng.choice([0.01, 0.0235, 0.1])))
    channels = random_channels(rng, (width, inputs, kernel, kernel), first.scale, code.scale)
    pad, stride = int(rng.integers(0, kernel // 2 + 1)), int(rng.integers(1, 3))
    stem = network.conv("stem", channels, code, stride=stride, pad=pad)
    if rng.random() < 0.6:
        after = Code(0.02)
        channels = random_channels(rng, (width, 1, 3, 3), code.scale, after.scale)
        network.conv("depthwise", channels, after, depthwise=True, pad=1)
        code = after
    if rng.random() < 0.6:
        after = Code(0.03, int(rng.integers(-30, 30)), np.int8)
        channels = random_channels(rng, (width, width, 1, 1), code.scale, after.scale)
        network.conv("pointwise", channels, after, relu=False)
        code = Code(0.0371, int(rng.integers(-30, 30)), np.int8)
        network.add("join", stem, code)
    model = network.finish(random_channels(rng, (4, width), code.scale, 0.05))
    shape = (6, inputs, size, size)
    x = rng.integers(0, 256, shape) if pixels else rng.normal(0, 1.5, shape)
    return model, x.astype(np.float32)
