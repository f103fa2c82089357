"""Float64 backpropagation over a quantized graph: the independent oracle of gradients.

Rounding counts as identity, the clamp's mask blocks; everything else is exact. It shares
nothing with the interpreter but the forward integers that it is given.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from codegen import blob
from codegen.interpreter import Interpreter
from codegen.ir import Add, Conv, DepthwiseConv, GlobalAveragePool, Graph, Head
from codegen.layer_arithmetic import logit_scale
from codegen.program import INPUT

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
    nothing, ``logits`` the integer logits; ``label`` is the sample's class.
    """
    tensors = graph.tensors
    weights = blob.unpack(graph, blob.pack(graph))
    unit = logit_scale(graph)
    probability = np.exp(logits * unit - (logits * unit).max())
    probability /= probability.sum()
    probability[label] -= 1
    errors: dict[str, NDArray[np.float64]] = {}
    gradients: dict[str, NDArray[np.float64]] = {}

    def send(tensor: str, error: NDArray[np.float64]) -> None:
        errors[tensor] = errors[tensor] + error if tensor in errors else error

    head = graph.head
    features = activations[head.input].ravel() - tensors[head.input].zero_point
    gradients["head.weight"] = np.outer(probability, features) * unit
    gradients["head.bias"] = probability * unit
    send(head.input, (probability @ weights["head.weight"] * unit)[None, None, :])
    for op in reversed(graph.ops):
        if isinstance(op, Head):
            continue
        error = errors[op.output]
        if isinstance(op, GlobalAveragePool):
            shape = tensors[op.input].shape
            send(op.input, np.broadcast_to(error / (shape[0] * shape[1]), shape))
            continue
        error = error * masks[op.output]
        if isinstance(op, Add):
            for name in op.inputs:
                send(name, error * tensors[name].scale / tensors[op.output].scale)
            continue
        assert isinstance(op, (Conv, DepthwiseConv))
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
