"""Float64 backpropagation over a quantized graph: the independent oracle of gradients.

Rounding counts as identity, the clamp's mask blocks; everything else is exact. It shares
nothing with the interpreter but the forward integers that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import logit_scale
from codegen.graph.ir import Conv, DepthwiseConv, Ending, Graph, Head, inputs_of
from codegen.operators import operator_of
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
    targets: Values | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Tensor name → dL/d(one integer step of it), float64, in the tensor's shape.

    ``activations`` has the int8 codes of every tensor, ``masks`` 1 where the clamp changed
    nothing, ``logits`` the integer outputs; ``label`` is the sample's class (for cross
    entropy) or the bits of its outputs (for the binary loss), ``targets`` the codes of its targets.
    """
    tensors = graph.tensors
    weights = blob.values_of(graph)
    unit = logit_scale(graph)
    of_outputs = _loss_gradient(graph, activations, np.asarray(logits * unit), label, targets)
    errors: dict[str, NDArray[np.float64]] = {}
    gradients: dict[str, NDArray[np.float64]] = {}

    def send(tensor: str, error: NDArray[np.float64]) -> None:
        errors[tensor] = errors[tensor] + error if tensor in errors else error

    ending = graph.ending
    of_steps = of_outputs * unit
    of_features = of_steps
    if isinstance(ending, Head):
        features = activations[ending.input].ravel() - tensors[ending.input].zero_point
        gradients[f"{ending.name}.weight"] = np.outer(of_outputs, features) * unit
        gradients[f"{ending.name}.bias"] = of_steps
        of_features = of_outputs @ weights[f"{ending.name}.weight"] * unit
    send(ending.input, of_features.reshape(tensors[ending.input].shape))
    for op in reversed(graph.ops):
        if isinstance(op, Ending):
            continue
        error = errors[op.output]
        if not isinstance(op, (Conv, DepthwiseConv)):
            operator = operator_of(op)
            if operator.saturates(graph, op):
                error = error * masks[op.output]
            inputs = [activations[name] for name in inputs_of(op)]
            parts = operator.gradients(graph, op, inputs, error)
            for name, part in zip(inputs_of(op), parts, strict=True):
                send(name, part)
            continue
        error = error * masks[op.output]
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
    graph: Graph,
    activations: Mapping[str, Values],
    outputs: NDArray[np.float64],
    label: int,
    targets: Values | None,
) -> NDArray[np.float64]:
    """dL/d(each output), in real units on both sides."""
    ending = graph.ending
    if ending.loss == "mse":
        source = graph.tensors[graph.input]
        wanted = source.scale * (activations[graph.input].ravel() - source.zero_point)
        if ending.target_scale is not None:
            assert targets is not None
            wanted = ending.target_scale * targets
        return np.asarray(2 * (outputs - wanted) / wanted.size)
    if ending.loss == "binary":
        bits = label >> np.arange(outputs.size) & 1
        return np.asarray((1 / (1 + np.exp(-outputs)) - bits) / outputs.size)
    probability = np.exp(outputs - outputs.max())
    probability /= probability.sum()
    probability[label] -= 1
    return np.asarray(probability)


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
    exact = real_gradients(
        graph, activations, masks, interpreter.logits, label, interpreter.targets
    )
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
