"""What quantization costs, layer by layer.

`simulate` runs a quantized graph in exact arithmetic (float64 holds every sum of products
exactly); the device's integers differ from it by at most one step of rounding. It is for figures,
not the oracle of the kernels: that is `codegen.interpreter`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codegen import ir
from codegen.float_graph import FloatGraph, average_pool, convolve, evaluate, max_pool
from codegen.quantize import quantize_input


def simulate(graph: ir.Graph, codes: NDArray[np.int8]) -> dict[str, NDArray[np.float64]]:
    """Real values of all tensors for input codes (N, H, W, C): name → (N, C, H, W).

    The head's name gives the logits (N, classes).
    """
    tensors = graph.tensors
    source = tensors[graph.input]
    start = source.scale * (codes.astype(np.float64) - source.zero_point)
    values = {graph.input: start.transpose(0, 3, 1, 2)}
    for op in graph.ops:
        match op:
            case ir.Conv() | ir.DepthwiseConv():
                weight, groups = _real_weight(op)
                bias = tensors[op.input].scale * op.weight_scale * op.bias
                result = convolve(values[op.input], weight, groups, op.stride, op.padding)
                result += bias[:, np.newaxis, np.newaxis]
                values[op.output] = _rounded(result, tensors[op.output])
            case ir.Add():
                total = values[op.inputs[0]] + values[op.inputs[1]]
                values[op.output] = _rounded(total, tensors[op.output])
            case ir.GlobalAveragePool():
                mean = values[op.input].mean(axis=(2, 3), keepdims=True)
                values[op.output] = _rounded(mean, tensors[op.output])
            case ir.MaxPool():
                values[op.output] = max_pool(values[op.input], op.window, op.stride, op.padding)
            case ir.AveragePool():
                mean = average_pool(values[op.input], op.window, op.stride, op.padding, op.counted)
                values[op.output] = _rounded(mean, tensors[op.output])
            case ir.Concat():
                values[op.output] = np.concatenate([values[name] for name in op.inputs], axis=1)
            case ir.Requantize():
                target = tensors[op.output]
                ends = np.array([op.low, op.high]) - target.zero_point
                rounded = _rounded(values[op.input], target)
                values[op.output] = np.clip(rounded, *(target.scale * ends))
            case ir.Head():
                step = op.weight_scale / 256
                flat = values[op.input].transpose(0, 2, 3, 1).reshape(len(codes), -1)
                logits = flat @ op.weight.T.astype(np.float64)
                logits += tensors[op.input].scale * op.bias
                values[op.name] = step * logits
    return values


def _real_weight(op: ir.Conv | ir.DepthwiseConv) -> tuple[NDArray[np.float64], int]:
    """Weight in real values as [O, I/groups, Kh, Kw], and the number of groups."""
    codes = op.weight.astype(np.float64)
    if isinstance(op, ir.DepthwiseConv):
        return (codes * op.weight_scale).transpose(2, 0, 1)[:, np.newaxis], codes.shape[2]
    return (codes * op.weight_scale[:, None, None, None]).transpose(0, 3, 1, 2), 1


def _rounded(values: NDArray[np.float64], tensor: ir.Tensor) -> NDArray[np.float64]:
    steps = np.rint(values / tensor.scale) + tensor.zero_point
    codes: NDArray[np.float64] = np.clip(steps, ir.INT8_MIN, ir.INT8_MAX)
    return tensor.scale * (codes - tensor.zero_point)


def signal_to_noise(
    float_graph: FloatGraph, graph: ir.Graph, x: NDArray[np.floating]
) -> dict[str, float]:
    """Signal to quantization noise of every tensor in dB, for real inputs x (N, C, H, W).

    20 dB means an error of a tenth of the signal (root mean squares). The error is the whole one,
    of this layer and of all before it.
    """
    exact = evaluate(float_graph, x)
    rounded = simulate(graph, quantize_input(graph, x.transpose(0, 2, 3, 1)))
    report = {}
    for name, value in rounded.items():
        noise = float(np.mean((value - exact[name]) ** 2))
        signal = float(np.mean(exact[name] ** 2))
        report[name] = 10.0 * float(np.log10(signal / noise)) if noise and signal else np.inf
    return report
