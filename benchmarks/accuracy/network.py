"""A quantized graph as a PyTorch network over batches: the float side of the comparison.

Everything is counted in integer steps: activations are codes, weights and biases count steps of
their own. ``rounded`` decides the arithmetic. Without it codes and weights are real numbers, and
what remains of the quantization is the saturation of the codes, which is the activation function:
this is float training of the same tensors. With it weights and codes are rounded as on the device
and rounding has gradient one (straight-through): the int8 forward pass, up to ties.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from codegen.graph.ir import INT8_MAX, INT8_MIN, Conv, DepthwiseConv, Graph, Head
from codegen.operators.add import Add
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.program.plans import Plan

STEPS_PER_HEAD_SCALE = {16: 256, 8: 1}
"""q8.8 has 256 steps per step of an int8 head of the same range."""


class Network:
    """Tensors of ``graph`` as float32 numbers of steps, of which ``plan`` trains some.

    ``parameters`` has ``LAYER.weight`` in PyTorch's layout and ``LAYER.bias``; ``steps`` the real
    value of one step, in a shape that broadcasts; ``trained`` masks of ones and zeros for what
    the plan trains. ``head_bits`` is the width of the head's weights. ``codes_in_gradient``
    makes weight gradients of the codes as they are, without taking off the zero point.
    """

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        *,
        rounded: bool,
        head_bits: int = 16,
        codes_in_gradient: bool = False,
    ) -> None:
        self.graph = graph
        self.rounded = rounded
        self.codes_in_gradient = codes_in_gradient
        self.parameters: dict[str, Tensor] = {}
        self.steps: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}
        for op in graph.ops:
            if isinstance(op, (Conv, DepthwiseConv)):
                scale, input_scale = op.weight_scale, graph.tensors[op.input].scale
                self._add(f"{op.name}.weight", _channels_first(op), scale[:, None, None, None])
                self._add(f"{op.name}.bias", op.bias, input_scale * scale)
            elif isinstance(op, Head):
                per_scale = STEPS_PER_HEAD_SCALE[head_bits]
                shrink = STEPS_PER_HEAD_SCALE[16] // per_scale
                step = np.array(op.weight_scale / per_scale)
                weight = np.rint(op.weight / shrink)
                self._add(f"{op.name}.weight", weight, step)
                input_scale = graph.tensors[op.input].scale
                self._add(f"{op.name}.bias", op.bias / shrink, input_scale * step)
        self._mark_trained(plan)

    def _add(self, name: str, values: NDArray[np.generic], step: NDArray[np.float64]) -> None:
        self.parameters[name] = torch.from_numpy(np.array(values, np.float32))
        self.steps[name] = torch.from_numpy(np.array(step, np.float32))

    def _mark_trained(self, plan: Plan) -> None:
        for layer in plan.biases:
            self._train(f"{layer}.bias")
        depthwise = {op.name for op in self.graph.ops if isinstance(op, DepthwiseConv)}
        for item in plan.weights:
            # The device's last axis: channels of a depthwise layer, else input channels.
            weight = f"{item.layer}.weight"
            axis = 0 if item.layer in depthwise else 1
            self._train(weight)
            kept = torch.zeros(self.parameters[weight].shape[axis])
            kept[list(item.channels)] = 1.0
            self.trained[weight] *= kept.reshape((-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1))
        if plan.head:
            self._train(f"{self.graph.head.name}.weight")
            self._train(f"{self.graph.head.name}.bias")

    def _train(self, name: str) -> None:
        self.parameters[name].requires_grad_(True)
        self.trained[name] = torch.ones_like(self.parameters[name])

    def forward(self, codes: Tensor) -> Tensor:
        """Logits (batch, classes) in real units for codes (batch, channels, height, width)."""
        values = {self.graph.input: codes}
        for op in self.graph.ops:
            if isinstance(op, Head):
                return self._logits(op, values[op.input])
            if isinstance(op, GlobalAveragePool):
                values[op.output] = self._round(values[op.input].mean(dim=(2, 3), keepdim=True))
                continue
            if not isinstance(op, (Add, Conv, DepthwiseConv)):
                raise NotImplementedError(f"{op.name}: {type(op).__name__} isn't in these studies")
            target = self.graph.tensors[op.output]
            if isinstance(op, Add):
                a, b = (self._real(values, name) for name in op.inputs)
                steps = (a + b) / target.scale
            else:
                steps = self._convolution(op, values[op.input])
            values[op.output] = torch.clamp(
                self._round(steps) + target.zero_point, INT8_MIN, INT8_MAX
            )
        raise AssertionError("a graph ends in a head")

    def _real(self, values: dict[str, Tensor], name: str) -> Tensor:
        tensor = self.graph.tensors[name]
        return (values[name] - tensor.zero_point) * tensor.scale

    def _logits(self, op: Head, codes: Tensor) -> Tensor:
        source = self.graph.tensors[op.input]
        weight, bias = f"{op.name}.weight", f"{op.name}.bias"
        # The head's inputs count height and width before channels.
        features = codes.permute(0, 2, 3, 1).flatten(1)
        sums = self._products(F.linear, features, source.zero_point, weight)
        return sums * (source.scale * self.steps[weight]) + (
            self.parameters[bias] * self.steps[bias]
        )

    def _convolution(self, op: Conv | DepthwiseConv, codes: Tensor) -> Tensor:
        source, target = self.graph.tensors[op.input], self.graph.tensors[op.output]
        pad = (op.padding.left, op.padding.right, op.padding.top, op.padding.bottom)
        weight = f"{op.name}.weight"
        groups = op.weight.shape[-1] if isinstance(op, DepthwiseConv) else 1

        def convolve(inputs: Tensor, kernel: Tensor) -> Tensor:
            return F.conv2d(F.pad(inputs, pad), kernel, stride=op.stride, groups=groups)

        sums = self._products(convolve, codes, source.zero_point, weight)
        factor = source.scale * self.steps[weight].reshape(-1, 1, 1) / target.scale
        return (sums + self.parameters[f"{op.name}.bias"].reshape(-1, 1, 1)) * factor

    def _products(
        self,
        product: Callable[[Tensor, Tensor], Tensor],
        codes: Tensor,
        zero_point: int,
        weight: str,
    ) -> Tensor:
        """``product`` of codes, less their zero point, with a weight."""
        values = self._round(self.parameters[weight])
        if not self.codes_in_gradient or weight not in self.trained:
            return product(codes - zero_point, values)
        # Value and the input's gradient are right; the weight's gradient comes from the second
        # product alone, in which the zero point is forgotten.
        right = product(codes - zero_point, values.detach())
        forgetful = product(codes.detach(), values)
        return right + forgetful - forgetful.detach()

    def _round(self, values: Tensor) -> Tensor:
        if not self.rounded:
            return values
        return values + (torch.round(values) - values).detach()

    def predict(self, codes: Tensor, batch: int = 64) -> NDArray[np.int64]:
        """Classes of codes (samples, channels, height, width)."""
        with torch.no_grad():
            parts = [self.forward(part).argmax(1) for part in codes.split(batch)]
        return torch.cat(parts).numpy()


def _channels_first(op: Conv | DepthwiseConv) -> NDArray[np.int8]:
    """[O, Kh, Kw, I] → [O, I, Kh, Kw], and [Kh, Kw, C] → [C, 1, Kh, Kw]."""
    if isinstance(op, Conv):
        return op.weight.transpose(0, 3, 1, 2)
    return op.weight.transpose(2, 0, 1)[:, None]


def channels_first(codes: NDArray[np.int8]) -> Tensor:
    """Device samples (N, H, W, C) as the network's input (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(codes.transpose(0, 3, 1, 2), np.float32))
