"""Float64 backpropagation over a quantized graph: the independent oracle of gradients.

Rounding counts as identity, the clamp's mask blocks; everything else is exact. It shares
nothing with the interpreter but the forward integers that it is given.
"""

import numpy as np

from codegen import blob
from codegen.ir import Add, Conv, DepthwiseConv, GlobalAveragePool, Graph
from codegen.layer_arithmetic import logit_scale


def real_gradients(
    graph: Graph,
    activations: dict[str, np.ndarray],
    masks: dict[str, np.ndarray],
    logits: np.ndarray,
    label: int,
) -> dict[str, np.ndarray]:
    """Tensor name → dL/d(one integer step of it), float64, in the tensor's shape."""
    tensors = graph.tensors
    weights = blob.unpack(graph, blob.pack(graph))
    unit = logit_scale(graph)
    probability = np.exp(logits * unit - (logits * unit).max())
    probability /= probability.sum()
    probability[label] -= 1
    errors: dict[str, np.ndarray] = {}
    gradients: dict[str, np.ndarray] = {}

    def send(tensor: str, error: np.ndarray) -> None:
        errors[tensor] = errors.get(tensor, 0.0) + error

    head = graph.head
    features = activations[head.input].ravel() - tensors[head.input].zero_point
    gradients["head.weight"] = np.outer(probability, features) * unit
    gradients["head.bias"] = probability * unit
    send(head.input, (probability @ weights["head.weight"] * unit)[None, None, :])
    for op in reversed(graph.ops[:-1]):
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
