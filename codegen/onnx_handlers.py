"""What the importer does with each ONNX operator: one small handler per row of `HANDLERS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from onnx import numpy_helper

from codegen.float_graph import (
    ChannelsFirst,
    Clamp,
    Coding,
    FloatAdd,
    FloatConv,
    FloatHead,
    FloatPool,
    StoredIntegers,
    conv_output_shape,
)
from codegen.ir import Padding
from codegen.onnx_graph import Array, ImportState, Integers, Node

_REMEDIES = {
    "QLinearConv": "export in QDQ format (quant_format=QuantFormat.QDQ)",
    "QLinearAdd": "export in QDQ format (quant_format=QuantFormat.QDQ)",
    "DynamicQuantizeLinear": "quantize statically (quantize_static), in QDQ format",
    "MaxPool": "use a Conv with stride 2 in its place",
    "AveragePool": "use GlobalAveragePool, or a Conv with stride",
    "Pad": "use the pads of the Conv behind it",
    "HardSwish": "use Relu or Clip",
    "Sigmoid": "use Relu or Clip",
    "LeakyRelu": "use Relu or Clip",
    "PRelu": "use Relu or Clip",
    "Mul": "fold it into the weights before it, or use BatchNormalization",
}


def unsupported(operator: str) -> str:
    """What to say of an operator that has no handler."""
    remedy = _REMEDIES.get(operator, "change the model to use only these")
    return f"operator not supported; {remedy}. Supported: {', '.join(SUPPORTED_OPERATORS)}"


# Handlers, one per operator.


def _constant(state: ImportState, node: Node) -> None:
    for key, value in node.attributes.items():
        if key == "value":
            state.constants[node.outputs[0]] = numpy_helper.to_array(value)
        elif key in ("value_float", "value_floats", "value_int", "value_ints"):
            state.constants[node.outputs[0]] = np.asarray(value)
        else:
            node.refuse(f"attribute '{key}' not supported; use a dense tensor as 'value'")


def _conv(state: ImportState, node: Node) -> None:
    source = state.tensor(node)
    shape = state.shapes[source]
    weight = state.constant(node, 1, "weight")
    if weight.ndim != 4:
        node.refuse(f"weight has {weight.ndim} dimensions; only 2-D convolutions are supported")
    outputs = weight.shape[0]
    bias = state.constant(node, 2, "bias") if node.input(2) else np.zeros(outputs)
    groups = int(node.attributes.get("group", 1))
    kernel = (weight.shape[2], weight.shape[3])
    if groups < 1 or weight.shape[1] * groups != shape[0] or bias.shape != (outputs,):
        node.refuse(
            f"weight {list(weight.shape)} with group {groups} doesn't fit an input of {shape[0]} "
            "channels; the model is inconsistent, export it again"
        )
    if groups > 1 and not groups == shape[0] == outputs:
        node.refuse(
            f"attribute group = {groups} with {shape[0]} input and {outputs} output channels; "
            "supported are group 1 and depthwise (group = inputs = outputs)"
        )
    if list(node.attributes.get("kernel_shape", kernel)) != list(kernel):
        node.refuse(f"attribute kernel_shape contradicts the weight's {list(kernel)}")
    _want_ones(node, "dilations")
    stride = _pair(node, "strides")
    conv = FloatConv(
        name=state.unique(node.name),
        input=source,
        output="",
        weight=weight,
        bias=bias,
        groups=groups,
        stride=stride,
        padding=_padding(node, shape, kernel, stride),
        stored=_stored_integers(state, node, source),
    )
    conv = dataclasses.replace(conv, output=conv.name)
    result = conv_output_shape(conv, shape)
    if min(result) < 1:
        node.refuse(
            f"its {kernel[0]}x{kernel[1]} kernel is larger than the padded input {list(shape)}; "
            "use a larger input or fewer strides"
        )
    state.append(node, conv, result)


def _dequantize_linear(state: ImportState, node: Node) -> None:
    scale = state.constant(node, 1, "scale").reshape(-1)
    if (scale <= 0).any():
        node.refuse("has a scale that is not positive; quantize the model again")
    if node.input(0) not in state.constants:
        _check_coding(state, node, scale)
        state.rename(node)
        return
    codes = state.constants[node.input(0)]
    zero = state.constants[node.input(2)] if node.input(2) else np.zeros(1, codes.dtype)
    axis = int(node.attributes.get("axis", 1)) % max(codes.ndim, 1)
    per_channel = scale.size > 1
    if codes.dtype.kind not in "iu" or (per_channel and scale.size != codes.shape[axis]):
        node.refuse(
            f"turns {codes.dtype} constants of shape {list(codes.shape)} with {scale.size} scales "
            f"along axis {axis} into real ones; supported are one scale, or one per channel"
        )
    along = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
    centred = codes.astype(np.int64) - zero.astype(np.int64).reshape(along)
    state.constants[node.outputs[0]] = centred * scale.reshape(along)
    if axis == 0 or not per_channel:
        state.integers[node.outputs[0]] = Integers(codes, scale, zero.reshape(-1))


def _coding(state: ImportState, node: Node, scale: Array) -> Coding:
    """Scale and zero point of an activation; uint8 codes become int8 ones."""
    zero = state.constants[node.input(2)] if node.input(2) else np.zeros(1, np.uint8)
    if scale.size != 1 or zero.size != 1:
        node.refuse("codes an activation with a scale per channel; use one per tensor")
    if zero.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        node.refuse(f"codes an activation as {zero.dtype}; use int8 or uint8")
    offset = 128 if zero.dtype == np.uint8 else 0
    return Coding(float(scale[0]), int(zero.reshape(-1)[0]) - offset)


def _quantize_linear(state: ImportState, node: Node) -> None:
    tensor = state.tensor(node)
    coding = _coding(state, node, state.constant(node, 1, "scale").reshape(-1))
    if tensor == state.logits:
        state.rename(node)  # the head's logits are wide on the device
        return
    known = state.codings.setdefault(tensor, coding)
    if known != coding:
        node.refuse(
            f"codes tensor '{tensor}' a second time, with other scale or zero point; quantize each "
            "activation once"
        )
    state.rename(node)


def _check_coding(state: ImportState, node: Node, scale: Array) -> None:
    tensor = state.tensor(node)
    coding = _coding(state, node, scale)
    if tensor != state.logits and state.codings.get(tensor) != coding:
        node.refuse(
            f"reads tensor '{tensor}' with another scale or zero point than it was written with; "
            "quantize the model again"
        )


def _stored_integers(state: ImportState, node: Node, source: str) -> StoredIntegers | None:
    """The integers behind the weight of a convolution, None where it is stored as real ones."""
    stored = state.integers.get(node.input(1))
    if stored is None:
        return None
    if stored.codes.dtype != np.int8 or stored.zero_point.any():
        node.refuse(
            f"its weight is stored as {stored.codes.dtype} with zero point "
            f"{int(stored.zero_point[0])}; quantize weights as symmetric int8"
        )
    outputs = len(stored.codes)
    scale = np.broadcast_to(stored.scale, outputs).astype(np.float64)
    bias = state.integers.get(node.input(2))
    codes = None
    if bias is not None and source in state.codings:
        wanted = state.codings[source].scale * scale
        if np.allclose(bias.scale, wanted, rtol=1e-5, atol=0.0) and not bias.zero_point.any():
            codes = bias.codes.astype(np.int32)
    return StoredIntegers(np.clip(stored.codes, -127, 127).astype(np.int8), scale, codes)


def _want_ones(node: Node, attribute: str) -> None:
    value = list(node.attributes.get(attribute, (1, 1)))
    if any(entry != 1 for entry in value):
        node.refuse(f"attribute {attribute} = {value}; only 1 is supported")


def _pair(node: Node, attribute: str) -> tuple[int, int]:
    value = list(node.attributes.get(attribute, (1, 1)))
    if len(value) != 2 or min(value) < 1:
        node.refuse(f"attribute {attribute} = {value}; two positive numbers are needed")
    return int(value[0]), int(value[1])


def _padding(
    node: Node, shape: ChannelsFirst, kernel: tuple[int, int], stride: tuple[int, int]
) -> Padding:
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return Padding()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, window, step in zip(shape[1:], kernel, stride, strict=True):
            total = max((-(-size // step) - 1) * step + window - size, 0)
            small, large = total // 2, total - total // 2
            before.append(small if mode == "SAME_UPPER" else large)
            after.append(large if mode == "SAME_UPPER" else small)
        return Padding(before[0], before[1], after[0], after[1])
    if mode != "NOTSET":
        node.refuse(f"attribute auto_pad = {mode} is unknown; use explicit pads")
    pads = [int(entry) for entry in node.attributes.get("pads", (0, 0, 0, 0))]
    if len(pads) != 4 or min(pads) < 0:
        node.refuse(f"attribute pads = {pads}; four numbers of 0 or more are needed")
    return Padding(*pads)


def _batch_normalization(state: ImportState, node: Node) -> None:
    if node.attributes.get("training_mode", 0):
        node.refuse("attribute training_mode = 1; export the model in inference mode")
    conv = _foldable_conv(state, node, "put it directly behind a Conv")
    gain, shift, mean, variance = (
        state.constant(node, index, role)
        for index, role in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance"))
    )
    if any(array.shape != conv.bias.shape for array in (gain, shift, mean, variance)):
        node.refuse(f"its parameters don't have the {len(conv.bias)} channels of '{conv.name}'")
    spread = variance + float(node.attributes.get("epsilon", 1e-5))
    if (spread <= 0).any():
        node.refuse("variance plus epsilon is not positive; train or export the model again")
    factor = gain / np.sqrt(spread)
    folded = dataclasses.replace(
        conv,
        weight=conv.weight * factor[:, np.newaxis, np.newaxis, np.newaxis],
        bias=(conv.bias - mean) * factor + shift,
    )
    state.replace(node, folded)


def _foldable_conv(state: ImportState, node: Node, remedy: str) -> FloatConv:
    maker = state.producer(node)
    if isinstance(maker, FloatConv) and maker.stored is not None:
        node.refuse(
            f"can't be folded into the integers of '{maker.name}'; fold it, then quantize the model"
        )
    if not isinstance(maker, FloatConv) or maker.clamp != Clamp():
        node.refuse(f"can't be folded into '{maker.name}'; {remedy}, before its activation")
    return maker


def _relu(state: ImportState, node: Node) -> None:
    _apply_clamp(state, node, Clamp(low=0.0))


def _clip(state: ImportState, node: Node) -> None:
    limits = [
        float(state.constant(node, index, role).reshape(-1)[0]) if node.input(index) else default
        for index, role, default in ((1, "min", -np.inf), (2, "max", np.inf))
    ]
    if not limits[0] <= 0.0 <= limits[1] or limits[0] == limits[1]:
        node.refuse(f"clips to {limits[0]} … {limits[1]}; the range must hold 0 and more than it")
    _apply_clamp(state, node, Clamp(*limits))


def _apply_clamp(state: ImportState, node: Node, clamp: Clamp) -> None:
    maker = state.producer(node)
    if not isinstance(maker, (FloatConv, FloatAdd)):
        node.refuse(f"can't clamp the output of '{maker.name}'; put it behind a Conv or Add")
    state.replace(node, dataclasses.replace(maker, clamp=maker.clamp.then(clamp)))


def _add(state: ImportState, node: Node) -> None:
    constants = [index for index in (0, 1) if node.input(index) in state.constants]
    if constants:
        _add_constant(state, node, constants[0])
        return
    if state.logits is not None:
        node.refuse("adds to the logits of the classifier something that isn't a constant")
    left, right = state.tensor(node, 0), state.tensor(node, 1)
    if state.shapes[left] != state.shapes[right]:
        node.refuse(
            f"adds tensors of shapes {list(state.shapes[left])} and {list(state.shapes[right])}; "
            "broadcasting is not supported, both must be alike"
        )
    name = state.unique(node.name)
    state.append(node, FloatAdd(name, (left, right), name), state.shapes[left])


def _add_constant(state: ImportState, node: Node, index: int) -> None:
    """A bias that is written as Add: of a MatMul, or of a convolution without one."""
    value = state.constant(node, index, "constant")
    flipped = dataclasses.replace(node, inputs=(node.input(1 - index), node.input(index)))
    maker = state.producer(flipped)
    if isinstance(maker, FloatHead):
        wanted = [(1,), (len(maker.bias),)]
        flat = value.reshape(-1) if value.ndim < 2 or value.size == value.shape[-1] else value
    else:
        maker = _foldable_conv(state, flipped, "put it directly behind a Conv")
        wanted = [(1,), (len(maker.bias),)]
        flat = value.reshape(-1) if value.shape[-2:] == (1, 1) or value.size == 1 else value
    if flat.shape not in wanted:
        node.refuse(f"adds a constant of shape {list(value.shape)}; one value per output is needed")
    state.replace(flipped, dataclasses.replace(maker, bias=maker.bias + flat))


def _global_average_pool(state: ImportState, node: Node) -> None:
    source = state.tensor(node)
    name = state.unique(node.name)
    channels = state.shapes[source][0]
    state.append(node, FloatPool(name, source, name), (channels, 1, 1))


def _reduce_mean(state: ImportState, node: Node) -> None:
    if node.input(1):
        axes = state.constant(node, 1, "axes").astype(int).reshape(-1).tolist()
    else:
        axes = list(node.attributes.get("axes", ()))
    if sorted(axis % 4 if -4 <= axis < 4 else axis for axis in axes) != [2, 3]:
        node.refuse(f"averages over axes {axes}; only the mean over height and width [2, 3] is")
    _global_average_pool(state, node)


def _to_vector(state: ImportState, node: Node) -> None:
    """Flatten, Reshape and Squeeze: fine where nothing but ones is moved about."""
    shape = state.shapes[state.tensor(node)]
    if shape[1:] != (1, 1):
        node.refuse(
            f"makes a vector of a tensor of shape {list(shape)}; put a GlobalAveragePool before it"
        )
    target: Sequence[int] | None = None
    if node.operator == "Reshape":
        target = [int(size) for size in state.constant(node, 1, "shape").reshape(-1)]
        if len([size for size in target if size not in (0, 1, -1, shape[0])]) > 0:
            node.refuse(f"reshapes {list(shape)} to {target}; only (batch, channels) is supported")
    elif node.operator == "Flatten" and int(node.attributes.get("axis", 1)) not in (1, -3):
        node.refuse(f"attribute axis = {node.attributes['axis']}; only 1 is supported")
    state.rename(node)


def _gemm(state: ImportState, node: Node) -> None:
    if int(node.attributes.get("transA", 0)):
        node.refuse("attribute transA = 1; export it with transA = 0")
    weight = state.constant(node, 1, "weight") * float(node.attributes.get("alpha", 1.0))
    if not int(node.attributes.get("transB", 0)):
        weight = weight.T
    bias = np.zeros(weight.shape[0])
    if node.input(2):
        constant = state.constant(node, 2, "bias") * float(node.attributes.get("beta", 1.0))
        if constant.size not in (1, len(bias)):
            node.refuse(f"its bias has shape {list(constant.shape)}; one value per class is needed")
        bias = bias + constant.reshape(-1)
    _head(state, node, weight, bias)


def _matmul(state: ImportState, node: Node) -> None:
    weight = state.constant(node, 1, "weight")
    if weight.ndim != 2:
        node.refuse(f"its weight has {weight.ndim} dimensions; a matrix is needed")
    _head(state, node, weight.T, np.zeros(weight.shape[1]))


def _head(state: ImportState, node: Node, weight: Array, bias: Array) -> None:
    source = state.tensor(node)
    channels, height, width = state.shapes[source]
    if (height, width) != (1, 1) or weight.shape[1] != channels:
        node.refuse(
            f"weight of {weight.shape[1]} inputs on a tensor of shape "
            f"{[channels, height, width]}; put a GlobalAveragePool before the classifier"
        )
    if weight.shape[0] < 2:
        node.refuse("has one output; a classifier with at least 2 classes is needed")
    name = state.unique(node.name)
    state.append(node, FloatHead(name, source, name, weight, bias), (weight.shape[0], 1, 1))
    state.logits = name


def _softmax(state: ImportState, node: Node) -> None:
    if state.tensor(node) != state.logits:
        node.refuse("is only supported behind the classifier; remove it from inside the model")
    if int(node.attributes.get("axis", -1)) not in (1, -1):
        node.refuse(f"attribute axis = {node.attributes['axis']}; only the classes' axis 1 is")
    if node.outputs[0] not in state.graph_outputs:
        node.refuse("is only supported as the last node; export the model without what follows")
    state.rename(node)


HANDLERS: dict[str, Callable[[ImportState, Node], None]] = {
    "Add": _add,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Constant": _constant,
    "Conv": _conv,
    "DequantizeLinear": _dequantize_linear,
    "Dropout": ImportState.rename,
    "Flatten": _to_vector,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average_pool,
    "Identity": ImportState.rename,
    "LogSoftmax": _softmax,
    "MatMul": _matmul,
    "QuantizeLinear": _quantize_linear,
    "ReduceMean": _reduce_mean,
    "Relu": _relu,
    "Reshape": _to_vector,
    "Softmax": _softmax,
    "Squeeze": _to_vector,
}

AFTER_HEAD = {
    *("Add", "Constant", "Dropout", "Identity", "LogSoftmax", "Softmax"),
    *("QuantizeLinear", "DequantizeLinear"),
}

SUPPORTED_OPERATORS = tuple(sorted(HANDLERS))
