"""What an operation of a quantized graph means in real numbers: rounded once, at its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from codegen.graph import ir
from codegen.graph.floats import Values
from codegen.operators import operator_of
from codegen.operators.add import Add
from codegen.operators.execution import convolve
from codegen.operators.layer_normalization import (
    LAYER_NORMALIZATION,
    FloatLayerNormalization,
    LayerNormalization,
)
from codegen.operators.product import Product
from codegen.operators.requantize import Requantize
from codegen.operators.scaling import Scaling


def real_output(graph: ir.Graph, op: ir.Op, inputs: Sequence[Values]) -> Values:
    """Real values (N, C, H, W) that ``op`` makes of real inputs; of the head (N, O)."""
    match op:
        case ir.Conv() | ir.DepthwiseConv():
            bias = graph.tensors[op.input].scale * op.weight_scale * op.bias
            weight, groups = _real_weight(op)
            result = convolve(inputs[0], weight, groups, op.stride, op.padding)
            return _rounded(result + bias[:, np.newaxis, np.newaxis], graph.tensors[op.output])
        case Requantize():
            target = graph.tensors[op.output]
            ends = np.array([op.low, op.high]) - target.zero_point
            return np.clip(_rounded(inputs[0], target), *(target.scale * ends))
        case Add():
            second = -inputs[1] if op.subtracts else inputs[1]
            return _rounded(inputs[0] + second, graph.tensors[op.output])
        case Product():
            return _rounded(inputs[0] * inputs[1], graph.tensors[op.output])
        case Scaling():
            gain, shift, below = (
                np.moveaxis(np.array(each).reshape(op.shape), -1, 0)
                for each in (op.gain, op.shift, op.below or op.gain)
            )
            factor = np.where(inputs[0] < 0, below, gain)
            return _rounded(factor * inputs[0] + shift, graph.tensors[op.output])
        case LayerNormalization():
            gain, shift = np.array(op.gain), np.array(op.shift)
            ends = (op.name, op.input, op.output)
            real = FloatLayerNormalization(*ends, gain, shift, op.epsilon, centred=op.centred)
            return _rounded(LAYER_NORMALIZATION.evaluate(real, inputs), graph.tensors[op.output])
        case ir.Head():
            flat = inputs[0].transpose(0, 2, 3, 1).reshape(len(inputs[0]), -1)
            sums = flat @ op.weight.T.astype(np.float64) + graph.tensors[op.input].scale * op.bias
            return np.asarray(op.weight_scale / 256 * sums)
        case _:
            return _rounded(operator_of(op).evaluate(op, inputs), graph.tensors[op.output])


def _real_weight(op: ir.Conv | ir.DepthwiseConv) -> tuple[Values, int]:
    """Weight in real values as [O, I/groups, Kh, Kw], and the number of groups."""
    codes = op.weight.astype(np.float64)
    if isinstance(op, ir.DepthwiseConv):
        return (codes * op.weight_scale).transpose(2, 0, 1)[:, np.newaxis], codes.shape[2]
    return (codes * op.weight_scale[:, None, None, None]).transpose(0, 3, 1, 2), 1


def _rounded(values: Values, tensor: ir.Tensor) -> Values:
    steps = np.rint(values / tensor.scale) + tensor.zero_point
    return tensor.scale * (np.clip(steps, ir.INT8_MIN, ir.INT8_MAX) - tensor.zero_point)
