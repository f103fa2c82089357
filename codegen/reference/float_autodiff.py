"""Float64 backpropagation over a quantized graph: the independent oracle of gradients.

Rounding counts as identity, the clamp's mask blocks; everything else is exact. It shares
nothing with the interpreter but the forward integers that it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import logit_scale
from codegen.graph.ir import (
    Add,
    AveragePool,
    Concat,
    Conv,
    DepthwiseConv,
    GlobalAveragePool,
    Graph,
    Head,
    MaxPool,
    Padding,
    Requantize,
)
from codegen.program import blob
from codegen.program.steps import INPUT
from codegen.reference.interpreter import Interpreter

Values = NDArray[np.int64]


def real_gradients(
    graph: Graph,
    activations: Mapping[str, Values],
    masks: Mapping[str, Values],
    logits: Values,
    label: int,
) -> dict[str, NDArray[np.float64]]:
    """Tensor name → dL/d(one integer step of it), float64, in the tensor's shape.

    ``activations`` has the int8 codes of every tensor, ``masks`` 1 where the clamp changed
    nothing, ``logits`` the head's integer outputs; ``label`` is the sample's class (for cross
    entropy).
    """
    tensors = graph.tensors
    weights = blob.values_of(graph)
    unit = logit_scale(graph)
    of_outputs = _loss_gradient(graph, activations, np.asarray(logits * unit), label)
    errors: dict[str, NDArray[np.float64]] = {}
    gradients: dict[str, NDArray[np.float64]] = {}

    def send(tensor: str, error: NDArray[np.float64]) -> None:
        errors[tensor] = errors[tensor] + error if tensor in errors else error

    head = graph.head
    features = activations[head.input].ravel() - tensors[head.input].zero_point
    gradients[f"{head.name}.weight"] = np.outer(of_outputs, features) * unit
    gradients[f"{head.name}.bias"] = of_outputs * unit
    of_features = of_outputs @ weights[f"{head.name}.weight"] * unit
    send(head.input, of_features.reshape(tensors[head.input].shape))
    for op in reversed(graph.ops):
        if isinstance(op, Head):
            continue
        error = errors[op.output]
        if isinstance(op, (Conv, DepthwiseConv, Add, Requantize)) or op.output in masks:
            error = error * masks[op.output]
        if not isinstance(op, (Conv, DepthwiseConv)):
            for name, part in _without_weights(graph, op, activations, error):
                send(name, part)
            continue
        error = error * (tensors[op.input].scale * op.weight_scale / tensors[op.output].scale)
        weight, pad = weights[f"{op.name}.weight"], op.padding
        source = np.pad(
            activations[op.input] - tensors[op.input].zero_point,
            ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0)),
        )
        kernel = weight.shape[1:3] if isinstance(op, Conv) else weight.shape[:2]
        into, of_weight = np.zeros(source.shape), np.zeros(weight.shape)
        height, width, _ = tensors[op.output].shape
        for y in range(height):
            for x in range(width):
                top, left = y * op.stride[0], x * op.stride[1]
                window = np.s_[top : top + kernel[0], left : left + kernel[1]]
                if isinstance(op, Conv):
                    of_weight += np.einsum("o,hwi->ohwi", error[y, x], source[window])
                    into[window] += np.einsum("o,ohwi->hwi", error[y, x], weight)
                else:
                    of_weight += error[y, x] * source[window]
                    into[window] += error[y, x] * weight
        gradients[f"{op.name}.weight"] = of_weight
        gradients[f"{op.name}.bias"] = error.sum(axis=(0, 1))
        if op.input != graph.input:
            rows, columns, _ = tensors[op.input].shape
            send(op.input, into[pad.top : pad.top + rows, pad.left : pad.left + columns])
    return gradients


def _loss_gradient(
    graph: Graph, activations: Mapping[str, Values], outputs: NDArray[np.float64], label: int
) -> NDArray[np.float64]:
    """dL/d(each output of the head), in real units on both sides."""
    if graph.head.loss == "mse":
        source = graph.tensors[graph.input]
        wanted = source.scale * (activations[graph.input].ravel() - source.zero_point)
        return np.asarray(2 * (outputs - wanted) / wanted.size)
    probability = np.exp(outputs - outputs.max())
    probability /= probability.sum()
    probability[label] -= 1
    return np.asarray(probability)


def _without_weights(
    graph: Graph,
    op: Add | GlobalAveragePool | MaxPool | AveragePool | Concat | Requantize,
    activations: Mapping[str, Values],
    error: NDArray[np.float64],
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What each input of ``op`` gets of the error of its output."""
    tensors = graph.tensors
    match op:
        case Add():
            for name in op.inputs:
                yield name, error * tensors[name].scale / tensors[op.output].scale
        case Requantize():
            yield op.input, error * tensors[op.input].scale / tensors[op.output].scale
        case Concat():
            first = 0
            for name in op.inputs:
                end = first + tensors[name].shape[2]
                yield name, error[:, :, first:end]
                first = end
        case GlobalAveragePool():
            shape = tensors[op.input].shape
            yield op.input, np.broadcast_to(error / (shape[0] * shape[1]), shape)
        case MaxPool() | AveragePool():
            yield op.input, _through_windows(graph, op, activations[op.input], error)


def _through_windows(
    graph: Graph, op: MaxPool | AveragePool, codes: Values, error: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Input error of a pool: one window after the other, over an input with its padding."""
    height, width, channels = codes.shape
    pad, counted = op.padding, op.counted if isinstance(op, AveragePool) else Padding()
    around = ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
    padded = np.pad(codes, around, constant_values=-1000)
    into = np.zeros(padded.shape)
    is_counted = np.zeros(padded.shape[:2])
    is_counted[
        pad.top - counted.top : pad.top + height + counted.bottom,
        pad.left - counted.left : pad.left + width + counted.right,
    ] = 1
    scale = graph.tensors[op.input].scale / graph.tensors[op.output].scale
    for y, x in np.ndindex(error.shape[0], error.shape[1]):
        top, left = y * op.stride[0], x * op.stride[1]
        window = np.s_[top : top + op.window[0], left : left + op.window[1]]
        if isinstance(op, AveragePool):
            into[window] += error[y, x] * scale / is_counted[window].sum()
            continue
        part = padded[window]
        for channel in range(channels):
            row, column = np.unravel_index(part[:, :, channel].argmax(), part.shape[:2])
            into[top + row, left + column, channel] += error[y, x, channel]
    return into[pad.top : pad.top + height, pad.left : pad.left + width]


def forward_integers(
    interpreter: Interpreter,
) -> tuple[dict[str, Values], dict[str, Values]]:
    """Activations and masks of the interpreter's last forward pass, by tensor name."""
    activations = {interpreter.graph.input: interpreter.arrays[INPUT]}
    masks = {}
    for name, values in interpreter.arrays.items():
        kind, _, tensor = name.partition(" ")
        if kind == "activation":
            activations[tensor] = values
        elif kind == "mask":
            masks[tensor] = values
    return activations, masks


def cosines(interpreter: Interpreter, label: int) -> dict[str, float]:
    """Cosine of each gradient of the last training step to float64 autodiff on its integers.

    The weights must be those the interpreter started from. 1 where both are zero.
    """
    graph = interpreter.graph
    activations, masks = forward_integers(interpreter)
    exact = real_gradients(graph, activations, masks, interpreter.logits, label)
    result = {}
    for name, (codes, exponent) in interpreter.gradients.items():
        layer, kind = name.rsplit(".", 1)
        op = next(op for op in graph.ops if op.name == layer)
        factor = np.ones(())
        if isinstance(op, (Conv, DepthwiseConv)):
            factor = op.weight_scale
            if kind == "weight" and isinstance(op, Conv):
                factor = factor[:, None, None, None]
        else:
            assert isinstance(op, Head)
        got, expected = codes * 2.0**exponent * factor, exact[name]
        norms = float(np.linalg.norm(got) * np.linalg.norm(expected))
        result[name] = float((got * expected).sum()) / norms if norms > 0 else 1.0
    return result
