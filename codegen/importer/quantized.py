"""How the importer reads quantized models: QuantizeLinear and DequantizeLinear around operations.

Between activations both only rename tensors and say how they are coded; where a model codes a
tensor a second time, differently, that is an operation of its own. A model whose input is integers
says by its first DequantizeLinear what they stand for. Of constants the stored integers are kept
beside their real values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from codegen.arithmetic.layers import INT32_MAX
from codegen.graph.floats import NO_CLAMP, Coding, StoredIntegers
from codegen.graph.ir import Padding
from codegen.importer.nodes import Node
from codegen.importer.state import Array, ImportState, Integers
from codegen.operators.requantize import FloatClamp


def dequantize_linear(state: ImportState, node: Node) -> None:
    """A constant's real values, or an activation under another name."""
    scale = _scale(state, node)
    if node.input(0) not in state.constants:
        _check_coding(state, node, scale)
        state.rename(node)
        return
    codes = state.constants[node.input(0)]
    zero = state.constants[node.input(2)] if node.input(2) else np.zeros(1, codes.dtype)
    axis = int(node.attributes.get("axis", 1)) % max(codes.ndim, 1)
    per_channel = scale.size > 1
    if int(node.attributes.get("block_size", 0)):
        node.refuse("has a scale for each block of weights; use one per output channel")
    if not _holds_integers(codes) or (per_channel and scale.size != codes.shape[axis]):
        node.refuse(
            f"turns {codes.dtype} constants of shape {list(codes.shape)} with {scale.size} scales "
            f"along axis {axis} into real ones; supported are one scale, or one per channel"
        )
    along = [-1 if dimension == axis else 1 for dimension in range(codes.ndim)]
    steps = codes.astype(np.int64) - zero.astype(np.int64).reshape(along)
    state.constants[node.outputs[0]] = steps * scale.reshape(along)
    state.integers[node.outputs[0]] = Integers(steps, scale, axis, codes.dtype)


def _holds_integers(codes: NDArray[Any]) -> bool:
    """Whether these are integers, also those of 4 bits and 2, which aren't numpy's own."""
    return codes.dtype.kind in "iu" or codes.dtype.name in _SMALL_INTEGERS


_SMALL_INTEGERS = ("int4", "uint4", "int2", "uint2")


ON_CODES: Mapping[str, bool] = {
    **dict.fromkeys(
        (
            "Clip",
            "Concat",
            "DepthToSpace",
            "Dropout",
            "Expand",
            "Flatten",
            "Gather",
            "GlobalMaxPool",
            "Identity",
            "MaxPool",
            "Pad",
            "ReduceMax",
            "Relu",
            "Reshape",
            "Resize",
            "ReverseSequence",
            "Slice",
            "SpaceToDepth",
            "Split",
            "Squeeze",
            "Tile",
            "Transpose",
            "Unsqueeze",
        ),
        True,
    ),
    **dict.fromkeys(("Cast", "DequantizeLinear", "Shape"), False),
}
"""Operators that may read an activation in integers, and whether what they make is, too."""


def _scale(state: ImportState, node: Node) -> Array:
    scale = state.constant(node, 1, "scale").reshape(-1)
    if (scale <= 0).any():
        node.refuse("has a scale that is not positive; quantize the model again")
    return scale


def _zero_point(state: ImportState, node: Node) -> NDArray[Any]:
    """Input 2; where it is left out, 0 in the type of the codes."""
    if node.input(2):
        return state.constants[node.input(2)]
    written = state.codes.get(node.input(0))
    asked = int(node.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    return np.zeros(1, written or onnx.helper.tensor_dtype_to_np_dtype(asked))


def _coding(state: ImportState, node: Node, scale: Array) -> Coding:
    """Scale and zero point of an activation; uint8 codes become int8 ones."""
    zero = _zero_point(state, node)
    if scale.size != 1 or zero.size != 1:
        node.refuse("codes an activation with a scale per channel; use one per tensor")
    if zero.dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        node.refuse(f"codes an activation as {zero.dtype}; use int8 or uint8")
    offset = 128 if zero.dtype == np.uint8 else 0
    return Coding(float(scale[0]), int(zero.reshape(-1)[0]) - offset)


def quantize_linear(state: ImportState, node: Node) -> None:
    """Notes how an activation is coded; a second, different code is an operation."""
    state.codes[node.outputs[0]] = _zero_point(state, node).dtype
    name = node.input(0)
    coding = _coding(state, node, _scale(state, node))
    if name in state.views and state.views[name].after:
        state.rename(node)  # what comes after the head is not computed on the device
        return
    view = state.padded_view(node)
    if view.padding != Padding() and state.codings.get(view.tensor, coding) != coding:
        view = state.view(node)
    known = state.codings.setdefault(view.tensor, coding)
    if known == coding:
        state.rename(node)
        return
    name = state.unique(node.name)
    state.append_elementwise(node, FloatClamp(name, view.tensor, name, NO_CLAMP), view)
    state.codings[name] = coding


def joined_coding(state: ImportState, node: Node, tensors: Sequence[str]) -> Coding:
    """How the codes of ``tensors``, which the node puts together as they are, are coded: alike."""
    codings = {state.codings.get(tensor) for tensor in tensors}
    coding = codings.pop()
    if coding is None or codings:
        node.refuse(
            "joins codes that aren't known to have one scale and zero point; put DequantizeLinear "
            "before it, for each"
        )
    return coding


def cast_codes(state: ImportState, node: Node, to: int) -> None:
    """Codes under the type that they have, or the model's input from integers to real numbers."""
    written, wanted = state.codes[node.input(0)], onnx.helper.tensor_dtype_to_np_dtype(to)
    if wanted == written:  # as PyTorch's exporter writes models of torch.ao.quantization
        state.codes[node.outputs[0]] = written
        return
    tensor = state.padded_view(node).tensor
    numbers = Coding(1.0, -128 if written == np.uint8 else 0)
    if wanted.kind != "f" or state.codings.setdefault(tensor, numbers) != numbers:
        node.refuse(
            f"turns codes of type {written} into {wanted} as they stand; put DequantizeLinear in "
            "its place"
        )


def _check_coding(state: ImportState, node: Node, scale: Array) -> None:
    name = node.input(0)
    if name in state.views and state.views[name].after:
        return
    tensor = state.padded_view(node).tensor
    coding = _coding(state, node, scale)
    if tensor not in state.codings and node.input(0) in state.codes:
        state.codings[tensor] = coding  # the model's input came in integers
    if state.codings.get(tensor) != coding:
        node.refuse(
            f"reads tensor '{tensor}' with another scale or zero point than it was written with; "
            "quantize the model again"
        )


def stored_integers(
    state: ImportState,
    node: Node,
    source: str,
    output_axis: int,
    arrange: Callable[[NDArray[np.int16]], NDArray[np.int16]],
) -> StoredIntegers | None:
    """The integers behind input 1 of a layer, None where it is stored as real numbers.

    They are less their zero point, and may reach beyond what the device holds. ``output_axis`` is
    the axis of the output channels as stored, ``arrange`` brings the codes into the layout
    [O, I/groups, Kh, Kw]; ``source`` is the layer's input tensor.
    """
    stored = state.integers.get(node.input(1))
    if stored is None:
        return None
    if stored.dtype.kind in "iu" and stored.dtype.itemsize > 1:
        node.refuse(f"its weight is stored as {stored.dtype}; quantize weights as symmetric int8")
    if stored.scale.size > 1 and stored.axis != output_axis:
        return None  # one scale per input: real values, quantized again per output
    weight = arrange(stored.steps.astype(np.int16))
    scale = np.broadcast_to(stored.scale, len(weight)).astype(np.float64)
    return StoredIntegers(weight, scale, _stored_bias(state, node, source, scale))


def _stored_bias(
    state: ImportState, node: Node, source: str, weight_scale: Array
) -> NDArray[np.int32] | None:
    bias = state.integers.get(node.input(2))
    if bias is None or source not in state.codings:
        return None
    if bias.steps.min() < -INT32_MAX - 1 or bias.steps.max() > INT32_MAX:
        return None
    wanted = state.codings[source].scale * weight_scale
    if bias.steps.size != len(wanted) or not np.allclose(bias.scale, wanted, rtol=1e-5, atol=0.0):
        return None
    return bias.steps.reshape(-1).astype(np.int32)


def follow_integers(state: ImportState, node: Node) -> None:
    """Keeps the integers of a constant of which a node makes another view of the same values."""
    stored = state.integers.get(node.input(0))
    if stored is None or node.operator not in _VIEWS:
        return
    shape = state.constants[node.outputs[0]].shape
    axis: int | None
    if node.operator == "Transpose":
        order = list(node.attributes.get("perm", range(len(shape) - 1, -1, -1)))
        steps, axis = stored.steps.transpose(order), order.index(stored.axis)
    else:
        steps, axis = (
            stored.steps.reshape(shape),
            _same_axis(stored.steps.shape, stored.axis, shape),
        )
    if axis is None and stored.scale.size > 1:
        return
    state.integers[node.outputs[0]] = dataclasses.replace(stored, steps=steps, axis=axis or 0)


_VIEWS = ("Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def _same_axis(before: tuple[int, ...], axis: int, after: tuple[int, ...]) -> int | None:
    """Where ``axis`` is after a reshape, None where it is split or merged with others."""
    for place, size in enumerate(after):
        if size == before[axis] and math.prod(after[:place]) == math.prod(before[:axis]):
            return place
    return None
