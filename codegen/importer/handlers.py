"""What the importer does with each ONNX operator: one small handler per row of `HANDLERS`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from onnx import numpy_helper

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
from codegen.importer.state import (
    Affine,
    Array,
    Group,
    ImportState,
    Node,
    Product,
    Roles,
    View,
    size_of,
)
from codegen.operators import OPERATORS
from codegen.operators.add import FloatAdd
from codegen.operators.base import Handler

_QDQ = "export in QDQ format (quant_format=QuantFormat.QDQ)"
REMEDIES = {
    "QLinearConv": _QDQ,
    "QLinearAdd": _QDQ,
    "QLinearMatMul": _QDQ,
    "ConvInteger": "quantize statically (quantize_static), in QDQ format",
    "DynamicQuantizeLinear": "quantize statically (quantize_static), in QDQ format",
    "ConvTranspose": "end the network in a fully connected layer",
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "use convolutions over time"),
    **dict.fromkeys(("Slice", "Split"), "pool, or convolve with a stride, in its place"),
    "InstanceNormalization": "use BatchNormalization",
    "LayerNormalization": "use BatchNormalization",
    "GroupNormalization": "use BatchNormalization",
    **dict.fromkeys(
        ("ai.onnx.ml.LinearClassifier", "ai.onnx.ml.LinearRegressor"),
        "export the model as a Gemm, or train a network of one hidden layer (MLPClassifier, "
        "MLPRegressor)",
    ),
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
    remedy = REMEDIES.get(operator, "change the model to use only these")
    return f"operator not supported; {remedy}. Supported: {', '.join(SUPPORTED_OPERATORS)}"


def _constant(state: ImportState, node: Node) -> None:
    for key, value in node.attributes.items():
        if key == "value":
            state.constants[node.outputs[0]] = numpy_helper.to_array(value)
        elif key in ("value_float", "value_floats", "value_int", "value_ints"):
            state.constants[node.outputs[0]] = np.asarray(value)
        else:
            node.refuse(f"attribute '{key}' not supported; use a dense tensor as 'value'")


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
    views, alike = _two_tensors(state, node)
    if not alike:
        shown = " and ".join(str(list(view.sizes)) for view in views)
        node.refuse(
            f"adds tensors of shapes {shown}; broadcasting is not supported, both must be alike"
        )
    name = state.unique(node.name)
    tensors = (views[0].tensor, views[1].tensor)
    roles = state.roles(node, views[0])
    state.append(node, FloatAdd(name, tensors, name), roles, views[0].dims)


def _two_tensors(state: ImportState, node: Node) -> tuple[list[View], bool]:
    """Both inputs, and whether they have one shape."""
    views = [state.view(node, index) for index in range(len(node.inputs))]
    pictures = [_arrangement(view, state.roles(node, view)) for view in views]
    return views, all(picture == pictures[0] for picture in pictures)


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
        views, alike = _two_tensors(state, node)
        if not alike:
            shown = " and ".join(str(list(view.sizes)) for view in views)
            node.refuse(
                f"multiplies tensors of shapes {shown} (attention or squeeze-and-excite), which "
                "is not supported; remove that part of the model"
            )
        name = state.unique(node.name)
        product = Product(name, (views[0].tensor, views[1].tensor), name)
        state.append(node, product, state.roles(node, views[0]), views[0].dims)
        return
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


def _scaler(state: ImportState, node: Node) -> None:
    view = state.view(node)
    features = size_of(state.roles(node, view).channels)
    offset, scale = (
        np.asarray(node.attributes.get(name, default), np.float64).reshape(-1)
        for name, default in (("offset", 0.0), ("scale", 1.0))
    )
    if len(view.dims) != 2 or {offset.size, scale.size} - {1, features}:
        node.refuse(
            f"scales an input of shape {list(view.sizes)}, with {offset.size} offsets and "
            f"{scale.size} scales; it is only supported for (batch, features), with one of each "
            "per feature, or for all"
        )
    _affine(state, node, view, scale, -offset * scale)


def _softmax(state: ImportState, node: Node) -> None:
    view = state.view(node)
    axis = int(node.attributes.get("axis", -1))
    wanted = [i for i, group in enumerate(view.dims) if group != ()]
    if len(wanted) != 1 or axis not in (wanted[0], wanted[0] - len(view.dims)):
        node.refuse(
            f"attribute axis = {axis} on shape {list(view.sizes)}; it is only supported over the "
            "classes of the classifier, at the end"
        )
    state.views[node.outputs[0]] = dataclasses.replace(view, after="Softmax")


_FREE = "the same values in other dimensions: it costs nothing"
_ONE_LAYER = "part of the layer before it, or a depthwise 1x1 layer of its own"

_OWN: Mapping[str, Handler] = {
    "Add": Handler(
        _add,
        "with a constant: " + _ONE_LAYER + "; of two tensors: Add",
        "tensors of different shapes; constants but one number, or one per channel",
    ),
    "AveragePool": Handler(
        average_pool, "AveragePool", "dilations; more than two spatial dimensions"
    ),
    "BatchNormalization": Handler(
        _batch_normalization, _ONE_LAYER, "training mode; normalization over another axis than 1"
    ),
    "Cast": Handler(_cast, "nothing", "casts of activations to integers", renames=True),
    "CastLike": Handler(_cast_like, "nothing", renames=True),
    "Concat": Handler(concat, "Concat", "other axes than the channels; pictures of unlike size"),
    "Constant": Handler(_constant, "a constant", "sparse tensors and strings"),
    "Conv": Handler(
        conv,
        "a convolution, full or depthwise",
        "dilations; groups but 1 and one channel each; weights that aren't constant; "
        "three spatial dimensions",
    ),
    "DequantizeLinear": Handler(
        dequantize_linear,
        "the real values of constants, or nothing",
        "another scale than the tensor was written with; scales per channel of an activation",
        renames=True,
    ),
    "Div": Handler(_div, "by a constant: " + _ONE_LAYER, "division by a tensor"),
    "Dropout": Handler(ImportState.rename, "nothing", renames=True),
    "Flatten": Handler(_flatten, _FREE, renames=True),
    "Gather": Handler(_gather, _FREE, "all but index 0 of a dimension of size 1", renames=True),
    "Gemm": Handler(
        gemm,
        "a fully connected layer: a convolution as large as the picture",
        "transA; weights that aren't constant",
    ),
    "GlobalAveragePool": Handler(global_average_pool, "GlobalAveragePool"),
    "GlobalMaxPool": Handler(global_max_pool, "MaxPool over the picture"),
    "Identity": Handler(ImportState.rename, "nothing", renames=True),
    "LogSoftmax": Handler(_softmax, "the loss, at the end", "anywhere else than at the end"),
    "MatMul": Handler(
        matmul,
        "a fully connected layer, or a 1x1 convolution along the last dimension",
        "products of two activations; weights of other than two dimensions",
    ),
    "MaxPool": Handler(
        max_pool, "MaxPool", "dilations; its second output; more than two spatial dimensions"
    ),
    "Mul": Handler(
        _mul,
        "by a constant: " + _ONE_LAYER + "; of functions of one tensor, as x · sigmoid(x): a table "
        "by code",
        "products of two tensors (attention, squeeze-and-excite)",
    ),
    "Pad": Handler(
        pad,
        "the padding of what follows",
        "other values than 0; dimensions but height and width; negative pads",
    ),
    "QuantizeLinear": Handler(
        quantize_linear,
        "the scale of a tensor; a second, different one: Requantize",
        "scales per channel of an activation; other types than int8 and uint8",
        renames=True,
    ),
    "ReduceMax": Handler(reduce_max, "MaxPool over rows, columns or both", "the channels"),
    "ReduceMean": Handler(
        reduce_mean, "GlobalAveragePool, or AveragePool over rows or columns", "the channels"
    ),
    "Reshape": Handler(
        _reshape, _FREE, "what neither merges whole dimensions nor splits them", renames=True
    ),
    "Shape": Handler(_shape, "a constant", renames=True),
    "ai.onnx.ml.Scaler": Handler(
        _scaler, "of features: " + _ONE_LAYER, "more dimensions than (batch, features)"
    ),
    "Softmax": Handler(_softmax, "the loss, at the end", "anywhere else than at the end"),
    "Squeeze": Handler(_squeeze, _FREE, renames=True),
    "Sub": Handler(_sub, "with a constant: " + _ONE_LAYER, "differences of two tensors"),
    "Sum": Handler(_sum_of_all, "Add, one after the other", "as of Add"),
    "Transpose": Handler(
        _transpose,
        "the same values in another order, which what follows takes into account",
        "orders that what follows can't take into account",
        renames=True,
    ),
    "Unsqueeze": Handler(_unsqueeze, _FREE, renames=True),
}

HANDLERS: Mapping[str, Handler] = {
    **_OWN,
    **{name: handler for row in OPERATORS for name, handler in row.handlers.items()},
}
"""By ONNX operator: spellings of several operations are told here, the rest by `OPERATORS`."""

SUPPORTED_OPERATORS = tuple(sorted(HANDLERS))
