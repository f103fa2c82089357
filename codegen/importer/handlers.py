"""What the importer does with each ONNX operator: one small handler per row of `HANDLERS`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import TensorProto, numpy_helper

from codegen.importer.comparisons import COMPARISONS, extremum
from codegen.importer.layers import (
    conv,
    gemm,
    linear_classifier,
    linear_regressor,
    matmul,
)
from codegen.importer.loops import REMEDY
from codegen.importer.nodes import Node
from codegen.importer.normalization import (
    group_normalization,
    instance_normalization,
    layer_normalization,
)
from codegen.importer.padding import concat_any, pad
from codegen.importer.pairs import expand, tile
from codegen.importer.pools import (
    average_pool,
    global_average_pool,
    global_max_pool,
    max_pool,
    reduce_max,
    reduce_mean,
)
from codegen.importer.quantized import cast_codes, dequantize_linear, quantize_linear
from codegen.importer.recurrent import gru, lstm
from codegen.importer.scaling import (
    add,
    batch_normalization,
    div,
    mean_of_all,
    mul,
    neg,
    p_relu,
    reduce_sum,
    scaler,
    sub,
    sum_of_all,
)
from codegen.importer.selections import gather, reverse_sequence, slice_, split
from codegen.importer.state import ImportState
from codegen.importer.upsampling import conv_transpose, depth_to_space, resize, space_to_depth
from codegen.operators import OPERATORS
from codegen.operators.base import Handler

CONTROL_FLOW = ("If", "Loop", "Scan")
_UNROLLED = (
    "export without control flow (fix all sizes but the batch, name the dimensions that squeeze "
    "removes)"
)

REMEDIES = {
    "ConvInteger": "quantize statically (quantize_static)",
    "MatMulInteger": "quantize statically (quantize_static)",
    "DynamicQuantizeLinear": "quantize statically (quantize_static, or for TFLite with a "
    "representative_dataset)",
    "RNN": "use GRU or LSTM, or convolutions over time",
    **dict.fromkeys(
        (
            "ai.onnx.ml.SVMClassifier",
            "ai.onnx.ml.SVMRegressor",
            "ai.onnx.ml.TreeEnsembleClassifier",
            "ai.onnx.ml.TreeEnsembleRegressor",
        ),
        "train a network in its place (MLPClassifier, MLPRegressor)",
    ),
    "Sqrt": "it is known in a LayerNormalization or RMSNormalization only: export that in one node "
    "(opset 17 or later, or 23)",
    "ArgMax": "end the network in the scores of its classes",
    "If": f"a branch that constants and shapes decide for is taken; else {_UNROLLED}",
    "Scan": _UNROLLED,
    "Loop": f"GRU and LSTM layers that Keras writes so are taken; else {REMEDY}",
}  # fmt: skip


LEFT_OVER = {
    "Erfc": "tf2onnx leaves it of Keras' exact GELU; use gelu with approximate=True",
    "Expm1": "tf2onnx leaves it of Keras' CELU; use ELU or SELU",
    "StatefulPartitionedCall": "tf2onnx leaves it of Keras' convolutions in groups; use several "
    "convolutions side by side (slices of the channels, Concatenate), or SeparableConv",
    "StatelessRandomUniformV2": "it draws random numbers, as layers that augment samples do; "
    "export the model without these",
}
"""What to say of operators of TensorFlow in files that are said to be ONNX."""


def unsupported(operator: str) -> str:
    """What to say of an operator that has no handler."""
    remedy = "change the model to use only these"
    if operator.startswith("com.microsoft."):
        remedy = (
            "it is onnxruntime's own, written by its optimizer or quantizer: give the model as it "
            "was before, or quantized statically (quantize_static)"
        )
    remedy = REMEDIES.get(operator, remedy)
    return f"operator not supported; {remedy}. Supported: {', '.join(SUPPORTED_OPERATORS)}"


def _constant(state: ImportState, node: Node) -> None:
    for key, value in node.attributes.items():
        if key == "value":
            state.constants[node.outputs[0]] = numpy_helper.to_array(value)
        elif key in ("value_float", "value_floats", "value_int", "value_ints"):
            state.constants[node.outputs[0]] = np.asarray(value)
        else:
            node.refuse(f"attribute '{key}' not supported; use a dense tensor as 'value'")


# Other views of the same values.


def _flatten(state: ImportState, node: Node) -> None:
    sizes = state.view(node).sizes
    axis = int(node.attributes.get("axis", 1))
    if not -len(sizes) <= axis <= len(sizes):
        node.refuse(f"attribute axis = {axis} of {len(sizes)}; the model is inconsistent")
    state.reshape(node, [math.prod(sizes[:axis]), math.prod(sizes[axis:])])


def _reshape(state: ImportState, node: Node) -> None:
    sizes = state.padded_view(node).sizes
    wanted = _reshaped(state, node, sizes)
    if [size for size in wanted if size != 1] != [size for size in sizes if size != 1]:
        # More than dimensions of size 1 changes: the zeros around are part of it.
        sizes = state.view(node).sizes
        wanted = _reshaped(state, node, sizes)
    if min(wanted, default=1) < 1 or math.prod(wanted) != math.prod(sizes):
        node.refuse(f"makes {wanted} of {list(sizes)}; the model is inconsistent, export it again")
    state.reshape(node, wanted)


def _reshaped(state: ImportState, node: Node, sizes: Sequence[int]) -> list[int]:
    """What the node's shape makes of ``sizes``."""
    wanted = [int(size) for size in state.constant(node, 1, "shape").reshape(-1)]
    if not int(node.attributes.get("allowzero", 0)):
        wanted = [
            sizes[i] if size == 0 and i < len(sizes) else size for i, size in enumerate(wanted)
        ]
    if -1 in wanted:
        known = math.prod(size for size in wanted if size != -1)
        wanted[wanted.index(-1)] = math.prod(sizes) // max(known, 1)
    return wanted


def _axes(state: ImportState, node: Node, rank: int) -> list[int]:
    """Axes of Squeeze and Unsqueeze."""
    axes = state.constant(node, 1, "axes").astype(int).reshape(-1).tolist()
    return [node.place(axis, rank) for axis in axes]


def _squeeze(state: ImportState, node: Node) -> None:
    sizes = state.padded_view(node).sizes
    named = _axes(state, node, len(sizes)) if node.input(1) else []
    axes = named or [i for i, size in enumerate(sizes) if size == 1]
    if any(sizes[axis] != 1 for axis in axes):
        node.refuse(f"removes dimensions {axes} of {list(sizes)}, which are larger than 1")
    state.reshape(node, [size for i, size in enumerate(sizes) if i not in axes])


def _unsqueeze(state: ImportState, node: Node) -> None:
    sizes = list(state.padded_view(node).sizes)
    rank = len(sizes) + state.constant(node, 1, "axes").size
    for axis in sorted(_axes(state, node, rank)):
        sizes.insert(axis, 1)
    state.reshape(node, sizes)


def _transpose(state: ImportState, node: Node) -> None:
    view = state.padded_view(node)
    rank = len(view.dims)
    order = list(node.attributes.get("perm", range(rank - 1, -1, -1)))
    if sorted(order) != list(range(rank)):
        node.refuse(f"attribute perm = {order} on {rank} dimensions; export the model again")
    dims = tuple(view.dims[axis] for axis in order)
    state.views[node.outputs[0]] = dataclasses.replace(view, dims=dims)


def _size(state: ImportState, node: Node) -> None:
    state.constants[node.outputs[0]] = np.array(math.prod(state.view(node).sizes), dtype=np.int64)


def _shape(state: ImportState, node: Node) -> None:
    sizes = list(state.view(node).sizes)
    end = node.attributes.get("end")
    part = sizes[int(node.attributes.get("start", 0)) : None if end is None else int(end)]
    state.constants[node.outputs[0]] = np.array(part, dtype=np.int64)


_REAL_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


def _cast(state: ImportState, node: Node) -> None:
    to = int(node.attributes.get("to", 1))
    if state.reads_codes(node):
        cast_codes(state, node, to)
    elif to not in _REAL_TYPES:
        node.refuse("makes integers of an activation; export the model in float32")
    state.rename(node)


def _cast_like(state: ImportState, node: Node) -> None:
    """To the type of another tensor, which is an activation's here: float."""
    if node.input(0) in state.constants:
        state.constants[node.outputs[0]] = state.constants[node.input(0)].astype(np.float32)
    else:
        state.rename(node)


def _reduce_min(state: ImportState, node: Node) -> None:
    """The opposite of the largest of what is opposite."""
    turned, most = (f"{node.outputs[0]}@{role}" for role in ("turned", "most"))
    neg(state, dataclasses.replace(node, outputs=(turned,)))
    reduce_max(state, dataclasses.replace(node, inputs=(turned, *node.inputs[1:]), outputs=(most,)))
    neg(state, dataclasses.replace(node, inputs=(most,)))


def _dropout(state: ImportState, node: Node) -> None:
    if node.input(2) and state.constant(node, 2, "training_mode").any():
        node.refuse("its training_mode is true; export the model in inference mode")
    state.rename(node)


def _softmax(state: ImportState, node: Node) -> None:
    view = state.view(node)
    axis = int(node.attributes.get("axis", -1))
    wanted = [i for i, group in enumerate(view.dims) if group != ()]
    if not wanted:
        node.refuse(
            "is over one value, of which it makes 1 whatever the model computes; one answer of yes "
            "or no ends in a Sigmoid: train it with that, or, for what stands before, say --output "
            f"{node.input(0)}"
        )
    if len(wanted) != 1 or axis not in (wanted[0], wanted[0] - len(view.dims)):
        node.refuse(
            f"attribute axis = {axis} on shape {list(view.sizes)}; it is only supported over the "
            "classes of the classifier, at the end; for what stands before it, say --output "
            f"{node.input(0)}"
        )
    state.views[node.outputs[0]] = dataclasses.replace(view, after="Softmax")


_FREE = "the same values in other dimensions: it costs nothing"
_EXTREMUM = (
    "of a tensor and one number: an activation; of tensors, or with a constant of several: Add, "
    "the activation, Add"
)
_ORDER = "the same values in other dimensions, as Reshape and Transpose make them"
_CONSTANTS = (
    "part of the layer before it, or a depthwise 1x1 layer of its own; where the constant varies "
    "along rows or columns, Scaling"
)

_CELL_LIMITS = (
    "states that come in from outside; other activations than sigmoid and tanh; clipped gates; "
    "windows of several lengths; more than 512 units"
)

_OWN: Mapping[str, Handler] = {
    "Add": Handler(
        add,
        "with a constant: " + _CONSTANTS + "; of two tensors: Add, of one that is repeated where "
        "it has size 1: behind an Expand",
        "constants that are larger than the tensor",
    ),
    "AveragePool": Handler(
        average_pool, "AveragePool", "dilations; more than two spatial dimensions"
    ),
    "BatchNormalization": Handler(batch_normalization, _CONSTANTS, "training mode"),
    "Cast": Handler(_cast, "nothing", "casts of activations to integers", renames=True),
    "CastLike": Handler(_cast_like, "nothing", renames=True),
    "Concat": Handler(
        concat_any,
        "Concat of channels; of other dimensions, with a Transpose of each before it; of a tensor "
        "and constants: as Pad, and Add",
        "pictures of unlike size; more than three dimensions",
    ),
    "Constant": Handler(_constant, "a constant", "sparse tensors and strings"),
    "Conv": Handler(
        conv,
        "a convolution, full or depthwise; in groups: one for each, and Concat",
        "weights that aren't constant; three spatial dimensions",
    ),
    "ConvTranspose": Handler(
        conv_transpose,
        "zeros between the pixels (Rearrange), and a convolution with its taps in reverse",
        "weights that aren't constant; three spatial dimensions",
    ),
    "DepthToSpace": Handler(depth_to_space, _ORDER, renames=True),
    "DequantizeLinear": Handler(
        dequantize_linear,
        "the real values of constants, or nothing",
        "another scale than the tensor was written with; scales per channel of an activation",
        renames=True,
    ),
    "Div": Handler(
        div,
        "by a constant: " + _CONSTANTS + "; of a constant by a tensor: a table by code, and of two "
        "functions of one tensor, as in a softsign",
        "division by what may be 0",
    ),
    "Dropout": Handler(_dropout, "nothing", "training mode", renames=True),
    "Expand": Handler(expand, "as Tile", "shapes that aren't constant"),
    "Flatten": Handler(_flatten, _FREE, renames=True),
    "Gather": Handler(
        gather,
        "Gather of channels, rows or columns; nothing where it picks all there is",
        "indices that aren't constant",
        renames=True,
    ),
    "GRU": Handler(
        gru,
        "a 1x1 convolution that makes what the gates see of the input, and a cell whose recurrent "
        "weights stay as they are; in both directions: Concat",
        _CELL_LIMITS,
    ),
    "Gemm": Handler(
        gemm,
        "a fully connected layer: a convolution as large as the picture",
        "transA; weights that aren't constant",
    ),
    "GlobalAveragePool": Handler(global_average_pool, "GlobalAveragePool"),
    "GlobalMaxPool": Handler(global_max_pool, "MaxPool over the picture"),
    "GroupNormalization": Handler(
        group_normalization,
        "LayerNormalization of its groups; of several in a picture: behind a Transpose",
        "what opset 18 had by this name",
    ),
    "Identity": Handler(ImportState.rename, "nothing", renames=True),
    "InstanceNormalization": Handler(
        instance_normalization,
        "LayerNormalization of each channel, behind a Transpose; of one channel, as PyTorch "
        "writes a GroupNorm of one group: of the whole picture",
    ),
    "LayerNormalization": Handler(
        layer_normalization,
        "LayerNormalization, whose scale and bias aren't trained; also where means and roots "
        "spell it; of other groups than the channels of a pixel, of whole rows or of the whole "
        "picture: behind a Transpose",
        "groups of more than 16,384 elements; scales that aren't constant",
    ),
    "LSTM": Handler(
        lstm,
        "as GRU",
        _CELL_LIMITS + "; its cell state; peepholes; coupled gates",
    ),
    "LogSoftmax": Handler(_softmax, "the loss, at the end", "anywhere else than at the end"),
    "MatMul": Handler(
        matmul,
        "a fully connected layer, or a 1x1 convolution along the last dimension; of a constant by "
        "a tensor: along the last but one",
        "products of two activations; several matrices, one for each part of a tensor",
    ),
    "Mean": Handler(mean_of_all, "as Sum, divided by a number", "as of Add"),
    "Max": Handler(extremum, _EXTREMUM),
    "MaxPool": Handler(
        max_pool, "MaxPool", "dilations; its second output; more than two spatial dimensions"
    ),
    "Min": Handler(extremum, _EXTREMUM),
    "Mul": Handler(
        mul,
        "by a constant: " + _CONSTANTS + "; of functions of one tensor, as x · sigmoid(x): a table "
        "by code; of two tensors: Product, of which one may have size 1 along any axis",
        "products of a part of the channels only (groups of them)",
    ),
    "Neg": Handler(neg, "as Mul by -1"),
    "PRelu": Handler(
        p_relu, "with one slope a table by code, as LeakyRelu; else Scaling with two gains"
    ),
    "Pad": Handler(
        pad,
        "the padding of the convolution or average pool that follows, else Rearrange; channels "
        "may be last; more channels: a 1x1 convolution; another value: Rearrange between two Add, "
        "below all numbers the padding of a MaxPool; what repeats or mirrors a tensor's own, or "
        "cuts it: Gather",
    ),
    "QuantizeLinear": Handler(
        quantize_linear,
        "the scale of a tensor; a second, different one: Requantize",
        "scales per channel of an activation; other types than int8 and uint8",
        renames=True,
    ),
    "ReduceMax": Handler(
        reduce_max,
        "MaxPool over rows, columns or both; of the channels: ChannelMax; of other dimensions with "
        "a Transpose before it",
    ),
    "ReduceMean": Handler(
        reduce_mean,
        "GlobalAveragePool, or AveragePool over rows or columns; of the channels: a 1x1 "
        "convolution, which a plan can train; of other dimensions with a Transpose before it",
    ),
    "ReduceMin": Handler(_reduce_min, "as ReduceMax, between two Neg"),
    "RMSNormalization": Handler(
        layer_normalization,
        "LayerNormalization whose mean stays; also where a mean square and a root spell it",
        "as of LayerNormalization",
    ),
    "ReduceSum": Handler(reduce_sum, "as ReduceMean, and a product"),
    "Reshape": Handler(
        _reshape,
        _FREE + ", where whole dimensions are merged or split; else a Transpose of the codes",
        renames=True,
    ),
    "Resize": Handler(
        resize,
        "to the nearest pixel, by any factor: Rearrange; linear, by a whole number: with a "
        "depthwise layer behind it, whose taps are exact up to a factor of 7: of codes only halves "
        "round otherwise, up where onnxruntime takes the even one (a step before a Sigmoid in "
        "coarse steps is several behind it), and where the Resize stands between codes, which "
        "onnxruntime cuts off towards zero, they are rounded",
        "cubic interpolation; aligned corners with linear; the channels; sizes that aren't "
        "constant",
    ),
    "ReverseSequence": Handler(
        reverse_sequence,
        "Gather of all steps from the last to the first, as Keras writes what goes backwards",
        "lengths that aren't those of the whole",
    ),
    "Shape": Handler(_shape, "a constant", renames=True),
    "Size": Handler(_size, "a constant", renames=True),
    "ai.onnx.ml.LinearClassifier": Handler(
        linear_classifier,
        "a fully connected layer, a logit for each class",
        "other ends than NONE, LOGISTIC and SOFTMAX",
    ),
    "ai.onnx.ml.LinearRegressor": Handler(
        linear_regressor, "a fully connected layer", "other ends than NONE"
    ),
    "ai.onnx.ml.Scaler": Handler(
        scaler,
        "as BatchNormalization, of the features",
        "more dimensions than (batch, features)",
    ),
    "Slice": Handler(
        slice_,
        "Gather of channels, rows or columns, with any step",
        "starts and ends that aren't constant",
    ),
    "Softmax": Handler(_softmax, "the loss, at the end", "anywhere else than at the end"),
    "SpaceToDepth": Handler(space_to_depth, _ORDER, renames=True),
    "Split": Handler(split, "Gather, one for each part that is used", "sizes that aren't constant"),
    "Squeeze": Handler(_squeeze, _FREE, renames=True),
    "Sub": Handler(sub, "as Add"),
    "Sum": Handler(sum_of_all, "Add, one after the other", "as of Add"),
    "Tile": Handler(
        tile,
        "Expand, or Gather along axes larger than 1; of a dimension of size 1 behind another one, "
        "as Keras' UpSampling has it: Rearrange",
        "repeats of the batch",
    ),
    "Transpose": Handler(
        _transpose,
        "the same values in another order, which what follows takes into account: where it can't, "
        "a Transpose of the codes is before it",
        "the batch",
        renames=True,
    ),
    "Unsqueeze": Handler(_unsqueeze, _FREE, renames=True),
}

HANDLERS: Mapping[str, Handler] = {
    **_OWN,
    **COMPARISONS,
    **{name: handler for row in OPERATORS for name, handler in row.handlers.items()},
}
"""By ONNX operator: spellings of several operations are told here, the rest by `OPERATORS`."""

SUPPORTED_OPERATORS = tuple(sorted(HANDLERS))
