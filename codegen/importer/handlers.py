"""What the importer does with each ONNX operator: one small handler per row of `HANDLERS`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from onnx import numpy_helper

from codegen.graph.floats import Clamp, FloatAdd, FloatClamp
from codegen.importer.layers import (
    average_pool,
    concat,
    conv,
    gemm,
    global_average_pool,
    global_max_pool,
    matmul,
    max_pool,
    pad,
    reduce_max,
    reduce_mean,
)
from codegen.importer.quantized import dequantize_linear, quantize_linear
from codegen.importer.state import Affine, Array, Group, ImportState, Node, Roles, View, size_of

_SMOOTH = "use Relu or Clip, and train with it"
_QDQ = "export in QDQ format (quant_format=QuantFormat.QDQ)"
_REMEDIES = {
    "QLinearConv": _QDQ,
    "QLinearAdd": _QDQ,
    "QLinearMatMul": _QDQ,
    "ConvInteger": "quantize statically (quantize_static), in QDQ format",
    "DynamicQuantizeLinear": "quantize statically (quantize_static), in QDQ format",
    "ConvTranspose": "end the network in a fully connected layer",
    **dict.fromkeys(
        ("Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Gelu", "Elu", "Selu", "Mish",
         "LeakyRelu", "PRelu", "Softplus", "Swish"),
        _SMOOTH,
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "use convolutions over time"),
    **dict.fromkeys(("Slice", "Split"), "pool, or convolve with a stride, in its place"),
    "InstanceNormalization": "use BatchNormalization",
    "LayerNormalization": "use BatchNormalization",
    "GroupNormalization": "use BatchNormalization",
    "ReduceSum": "use the mean (ReduceMean)",
    "ArgMax": "end the network in the scores of its classes",
    **dict.fromkeys(
        ("If", "Loop", "Scan"),
        "export without control flow (fix all sizes but the batch, name the dimensions that "
        "squeeze removes)",
    ),
}  # fmt: skip


def unsupported(operator: str) -> str:
    """What to say of an operator that has no handler."""
    remedy = _REMEDIES.get(operator, "change the model to use only these")
    return f"operator not supported; {remedy}. Supported: {', '.join(SUPPORTED_OPERATORS)}"


def _constant(state: ImportState, node: Node) -> None:
    for key, value in node.attributes.items():
        if key == "value":
            state.constants[node.outputs[0]] = numpy_helper.to_array(value)
        elif key in ("value_float", "value_floats", "value_int", "value_ints"):
            state.constants[node.outputs[0]] = np.asarray(value)
        else:
            node.refuse(f"attribute '{key}' not supported; use a dense tensor as 'value'")


# Activations.


def _relu(state: ImportState, node: Node) -> None:
    _clamp(state, node, Clamp(low=0.0))


def _clip(state: ImportState, node: Node) -> None:
    limits = [
        float(state.constant(node, index, role, finite=False).reshape(-1)[0])
        if node.input(index)
        else default
        for index, role, default in ((1, "min", -np.inf), (2, "max", np.inf))
    ]
    if not limits[0] <= 0.0 <= limits[1] or limits[0] == limits[1]:
        node.refuse(f"clips to {limits[0]} … {limits[1]}; the range must hold 0 and more than it")
    _clamp(state, node, Clamp(*limits))


def _maximum(state: ImportState, node: Node) -> None:
    _bound(state, node, Clamp(low=_other_constant(state, node)), "above")


def _minimum(state: ImportState, node: Node) -> None:
    _bound(state, node, Clamp(high=_other_constant(state, node)), "below")


def _other_constant(state: ImportState, node: Node) -> float:
    """The one number that a Max or Min compares with."""
    constants = [index for index, name in enumerate(node.inputs) if name in state.constants]
    if len(node.inputs) != 2 or len(constants) != 1:
        node.refuse("compares tensors; only the comparison with one number is supported")
    value = state.constant(node, constants[0], "constant")
    if value.size != 1:
        node.refuse(f"compares with {value.size} numbers; only one for all elements is supported")
    return float(value.reshape(-1)[0])


def _bound(state: ImportState, node: Node, clamp: Clamp, side: str) -> None:
    if not clamp.low <= 0.0 <= clamp.high:
        node.refuse(f"keeps values {side} {clamp.low if side == 'above' else clamp.high:g}; the "
                    "range that is left must hold 0")  # fmt: skip
    tensor = next(name for name in node.inputs if name not in state.constants)
    _clamp(state, dataclasses.replace(node, inputs=(tensor,)), clamp)


def _clamp(state: ImportState, node: Node, clamp: Clamp) -> None:
    view = state.view(node)
    name = state.unique(node.name)
    state.append_elementwise(node, FloatClamp(name, view.tensor, name, clamp), view)


# Sums and products with constants; sums of tensors.


def _batch_normalization(state: ImportState, node: Node) -> None:
    if node.attributes.get("training_mode", 0):
        node.refuse("attribute training_mode = 1; export the model in inference mode")
    gain, shift, mean, variance = (
        state.constant(node, index, role)
        for index, role in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance"))
    )
    view, roles = state.picture(node)
    channels = roles.shape[0]
    if any(array.shape != (channels,) for array in (gain, shift, mean, variance)):
        node.refuse(f"its parameters don't have the {channels} channels of its input")
    spread = variance + float(node.attributes.get("epsilon", 1e-5))
    if (spread <= 0).any():
        node.refuse("variance plus epsilon is not positive; train or export the model again")
    factor = gain / np.sqrt(spread)
    _affine(state, node, view, factor, shift - mean * factor)


def _affine(state: ImportState, node: Node, view: View, gain: Array, shift: Array) -> None:
    name = state.unique(node.name)
    op = Affine(name, view.tensor, name, gain, shift)
    state.append_elementwise(node, op, view)


def _add(state: ImportState, node: Node) -> None:
    _sum(state, node, 1.0)


def _sub(state: ImportState, node: Node) -> None:
    _sum(state, node, -1.0)


def _sum(state: ImportState, node: Node, sign: float) -> None:
    constants = [index for index in (0, 1) if node.input(index) in state.constants]
    if constants:
        index = constants[0]
        flipped = _flipped(node, index)
        view = state.view(flipped)
        value = _per_channel(state, node, index, view)
        if index == 0:  # constant minus tensor
            _affine(state, flipped, view, np.array(sign), value)
        else:
            _affine(state, flipped, view, np.array(1.0), sign * value)
        return
    if sign < 0:
        node.refuse("subtracts one tensor from another; negate the weights before it and use Add")
    views = [state.view(node, index) for index in range(len(node.inputs))]
    pictures = [_arrangement(view, state.roles(node, view)) for view in views]
    if any(picture != pictures[0] for picture in pictures):
        shown = " and ".join(str(list(view.sizes)) for view in views)
        node.refuse(
            f"adds tensors of shapes {shown}; broadcasting is not supported, both must be alike"
        )
    name = state.unique(node.name)
    tensors = (views[0].tensor, views[1].tensor)
    roles = state.roles(node, views[0])
    state.append(node, FloatAdd(name, tensors, name), roles, views[0].dims)


def _flipped(node: Node, index: int) -> Node:
    """The node with its input ``index`` (0 or 1) last."""
    return dataclasses.replace(node, inputs=(node.input(1 - index), node.input(index)))


def _arrangement(view: View, roles: Roles) -> list[list[tuple[str, int]]]:
    """Dimensions as runs of channels, height and width, to compare two tensors."""

    def runs(group: Group) -> list[tuple[str, int]]:
        result: list[tuple[str, int]] = []
        for axis in group:
            role = "C" if axis in roles.channels else "H" if axis in roles.height else "W"
            if result and result[-1][0] == role:
                result[-1] = role, result[-1][1] * axis.size
            else:
                result.append((role, axis.size))
        return result

    return [runs(group) for group in view.dims]


def _sum_of_all(state: ImportState, node: Node) -> None:
    """Sum: additions one after another."""
    if len(node.inputs) == 1:
        state.rename(node)
        return
    if len(node.inputs) > 2:
        partial = f"{node.outputs[0]}@{len(node.inputs) - 1}"
        first = dataclasses.replace(node, inputs=node.inputs[:-1], outputs=(partial,))
        _sum_of_all(state, first)
        node = dataclasses.replace(node, inputs=(partial, node.inputs[-1]))
    _add(state, node)


def _mul(state: ImportState, node: Node) -> None:
    constants = [index for index in (0, 1) if node.input(index) in state.constants]
    if not constants:
        node.refuse(
            "multiplies two tensors (attention, squeeze-and-excite or a smooth activation); only "
            "products with constants are supported, remove that part of the model"
        )
    flipped = _flipped(node, constants[0])
    view = state.view(flipped)
    gain = _per_channel(state, node, constants[0], view)
    _affine(state, flipped, view, gain, np.array(0.0))


def _div(state: ImportState, node: Node) -> None:
    if node.input(1) not in state.constants:
        node.refuse("divides by a tensor; only division by constants is supported")
    view = state.view(node)
    divisor = _per_channel(state, node, 1, view)
    if (divisor == 0).any():
        node.refuse("divides by zero; train or export the model again")
    _affine(state, node, view, 1.0 / divisor, np.array(0.0))


def _per_channel(state: ImportState, node: Node, index: int, view: View) -> Array:
    """A constant as one number, or one per channel of ``view``'s tensor."""
    value = state.constant(node, index, "constant")
    if value.size == 1:
        return value.reshape(())
    sizes = [1] * (len(view.dims) - value.ndim) + list(value.shape)
    varying = [place for place, size in enumerate(sizes) if size > 1]
    if len(sizes) == len(view.dims) and len(varying) == 1:
        group = view.dims[varying[0]]
        if size_of(group) == value.size and group == state.roles(node, view).channels:
            return value.reshape(-1)
    return node.refuse(
        f"combines a tensor of shape {list(view.sizes)} with a constant of shape "
        f"{list(value.shape)}; one number, or one per channel, is needed"
    )


# Other views of the same values.


def _flatten(state: ImportState, node: Node) -> None:
    sizes = state.view(node).sizes
    axis = int(node.attributes.get("axis", 1))
    if not -len(sizes) <= axis <= len(sizes):
        node.refuse(f"attribute axis = {axis} of {len(sizes)}; the model is inconsistent")
    state.reshape(node, [math.prod(sizes[:axis]), math.prod(sizes[axis:])])


def _reshape(state: ImportState, node: Node) -> None:
    sizes = state.padded_view(node).sizes
    wanted = [int(size) for size in state.constant(node, 1, "shape").reshape(-1)]
    if not int(node.attributes.get("allowzero", 0)):
        wanted = [
            sizes[i] if size == 0 and i < len(sizes) else size for i, size in enumerate(wanted)
        ]
    if -1 in wanted:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(sizes) // max(known, 1)
    if min(wanted, default=1) < 1 or math.prod(wanted) != math.prod(sizes):
        node.refuse(f"makes {wanted} of {list(sizes)}; the model is inconsistent, export it again")
    state.reshape(node, wanted)


def _axes(state: ImportState, node: Node, rank: int) -> list[int]:
    """Axes of Squeeze and Unsqueeze: input 1, or an attribute in older models."""
    if node.input(1):
        axes = state.constant(node, 1, "axes").astype(int).reshape(-1).tolist()
    else:
        axes = list(node.attributes.get("axes", ()))
    if any(not -rank <= axis < rank for axis in axes):
        node.refuse(f"names axes {axes} of {rank}; the model is inconsistent, export it again")
    return [axis % rank for axis in axes]


def _squeeze(state: ImportState, node: Node) -> None:
    sizes = state.padded_view(node).sizes
    axes = _axes(state, node, len(sizes)) or [i for i, size in enumerate(sizes) if size == 1]
    if any(sizes[axis] != 1 for axis in axes):
        node.refuse(f"removes dimensions {axes} of {list(sizes)}, which are larger than 1")
    state.reshape(node, [size for i, size in enumerate(sizes) if i not in axes])


def _unsqueeze(state: ImportState, node: Node) -> None:
    sizes = list(state.padded_view(node).sizes)
    rank = len(sizes) + (
        state.constants[node.input(1)].size
        if node.input(1) in state.constants
        else len(node.attributes.get("axes", ()))
    )
    for axis in sorted(_axes(state, node, rank)):
        sizes.insert(axis, 1)
    state.reshape(node, sizes)


def _transpose(state: ImportState, node: Node) -> None:
    view = state.view(node)
    rank = len(view.dims)
    order = list(node.attributes.get("perm", range(rank - 1, -1, -1)))
    if sorted(order) != list(range(rank)):
        node.refuse(f"attribute perm = {order} on {rank} dimensions; export the model again")
    dims = tuple(view.dims[axis] for axis in order)
    state.views[node.outputs[0]] = dataclasses.replace(view, dims=dims)


def _shape(state: ImportState, node: Node) -> None:
    sizes = list(state.view(node).sizes)
    end = node.attributes.get("end")
    part = sizes[int(node.attributes.get("start", 0)) : None if end is None else int(end)]
    state.constants[node.outputs[0]] = np.array(part, dtype=np.int64)


def _cast(state: ImportState, node: Node) -> None:
    codes = node.input(0) in state.codes  # PyTorch's exporter casts them to the type they have
    if not codes and int(node.attributes.get("to", 1)) not in (1, 10, 11):
        node.refuse("makes integers of an activation; export the model in float32")
    state.rename(node)


def _cast_like(state: ImportState, node: Node) -> None:
    """To the type of another tensor, which is an activation's here: float."""
    if node.input(0) in state.constants:
        state.constants[node.outputs[0]] = state.constants[node.input(0)].astype(np.float32)
    else:
        state.rename(node)


def _gather(state: ImportState, node: Node) -> None:
    """Indexing a dimension of size 1 with 0, as x[:, :, 0] does."""
    sizes = list(state.view(node).sizes)
    index = state.constant(node, 1, "indices")
    axis = int(node.attributes.get("axis", 0))
    if not -len(sizes) <= axis < len(sizes) or sizes[axis] != 1 or index.ndim > 0:
        node.refuse(
            f"picks part of a tensor of shape {sizes}; only index 0 of a dimension of size 1 is "
            "supported, pool or convolve instead"
        )
    del sizes[axis]
    state.reshape(node, sizes)


def _softmax(state: ImportState, node: Node) -> None:
    view = state.view(node)
    axis = int(node.attributes.get("axis", -1))
    wanted = [i for i, group in enumerate(view.dims) if group != ()]
    if len(wanted) != 1 or axis not in (wanted[0], wanted[0] - len(view.dims)):
        node.refuse(
            f"attribute axis = {axis} on shape {list(view.sizes)}; it is only supported over the "
            "classes of the classifier, at the end"
        )
    state.views[node.outputs[0]] = dataclasses.replace(view, after_softmax=True)


HANDLERS: dict[str, Callable[[ImportState, Node], None]] = {
    "Add": _add,
    "AveragePool": average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Concat": concat,
    "Constant": _constant,
    "Conv": conv,
    "DequantizeLinear": dequantize_linear,
    "Div": _div,
    "Dropout": ImportState.rename,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "Identity": ImportState.rename,
    "LogSoftmax": _softmax,
    "MatMul": matmul,
    "Max": _maximum,
    "MaxPool": max_pool,
    "Min": _minimum,
    "Mul": _mul,
    "Pad": pad,
    "QuantizeLinear": quantize_linear,
    "ReduceMax": reduce_max,
    "ReduceMean": reduce_mean,
    "Relu": _relu,
    "Reshape": _reshape,
    "Shape": _shape,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _sub,
    "Sum": _sum_of_all,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

SUPPORTED_OPERATORS = tuple(sorted(HANDLERS))

RENAMING = frozenset(
    ("Cast", "CastLike", "DequantizeLinear", "Dropout", "Flatten", "Gather", "Identity",
     "QuantizeLinear", "Reshape", "Shape", "Squeeze", "Transpose", "Unsqueeze")
)  # fmt: skip
"""Operators that leave values as they are: they may follow the Softmax at the end."""
