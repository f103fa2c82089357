"""QONNX's Quant, as Brevitas, QKeras and hls4ml write it, in QDQ form.

It rounds real numbers to those that integers of some bits stand for, and gives real numbers again
(the specification is qonnx's page of IntQuant). So QuantizeLinear, Clip to what the bits hold, and
DequantizeLinear are written for it before any handler sees it; of constants the integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from codegen.importer.constants import Constants
from codegen.importer.nodes import Node, read_node
from codegen.importer.state import Array, ImportState

QUANT = (
    "onnx.brevitas.Quant", "qonnx.custom_op.general.IntQuant", "qonnx.custom_op.general.Quant",
)  # fmt: skip

_WIDEST = 8  # bits of a device's integers
_HALF_TO_EVEN = ("ROUND", "HALF_EVEN")


def quant_to_qdq(state: ImportState, opset: int) -> None:
    """Writes every Quant among the nodes of ``state`` as the nodes that it stands for.

    Raises ModelError for one that ONNX's own operators can't say.
    """
    if not any(node.operator in QUANT for node in state.nodes):
        return
    constants = Constants(state.nodes, state.constants, opset)
    nodes: list[Node] = []
    for node in state.nodes:
        nodes += _as_qdq(state, constants, node) if node.operator in QUANT else [node]
    state.nodes = nodes


def _as_qdq(state: ImportState, constants: Constants, node: Node) -> list[Node]:
    scale, zero, width = (
        _parameter(constants, node, place, role)
        for place, role in ((1, "scale"), (2, "zero point"), (3, "bit width"))
    )
    bits = int(width.reshape(-1)[0])
    low, high = _ends(node, bits)
    rounding = str(node.attributes.get("rounding_mode", "ROUND")).upper()
    if rounding not in _HALF_TO_EVEN:
        node.refuse(f"attribute rounding_mode = {rounding}; train with ROUND (halves to even)")
    if (zero != np.rint(zero)).any() or (scale <= 0).any():
        node.refuse("has a zero point that isn't whole, or a scale that isn't positive")
    value = constants.value(node.input(0))
    if value is not None:
        codes = np.rint(np.clip(value.astype(np.float64) / scale + zero, low, high))
        if bits > _WIDEST or zero.size > 1 or _axis(scale, value.ndim) is None:
            state.constants[node.outputs[0]] = (codes - zero) * scale
            return []
        return _of_constant(state, node, codes, scale, zero)
    if bits > _WIDEST:
        node.refuse(f"codes an activation in {bits} bits; train it with {_WIDEST} or fewer")
    return _of_activation(state, node, scale, zero, (low, high))


def _parameter(constants: Constants, node: Node, place: int, role: str) -> Array:
    value = constants.value(node.input(place))
    if value is None or not value.size:
        node.refuse(f"its {role} '{node.input(place)}' is not a constant; fold it when exporting")
    return np.asarray(value, dtype=np.float64)


def _ends(node: Node, bits: int) -> tuple[int, int]:
    """The least and the largest integer."""
    signed, narrow = (bool(node.attributes.get(key, 1)) for key in ("signed", "narrow"))
    if bits < 1 or (signed and bits == 1):
        node.refuse(f"has integers of {bits} bits; train it with 2 to {_WIDEST}")
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def _axis(scale: Array, rank: int) -> int | None:
    """The one dimension of a constant along which its scale varies, 0 where it doesn't."""
    shape = (1,) * (rank - scale.ndim) + scale.shape
    longer = [axis for axis, size in enumerate(shape) if size > 1]
    return (longer or [0])[0] if len(longer) < 2 and len(shape) == rank else None


def _of_constant(
    state: ImportState, node: Node, codes: Array, scale: Array, zero: Array
) -> list[Node]:
    dtype = _type(node)
    names = [
        _constant(state, node, "codes", codes.astype(dtype)),
        _constant(state, node, "scale", scale.astype(np.float32).reshape(-1)),
        _constant(state, node, "zero", np.full(scale.size, zero.reshape(-1)[0]).astype(dtype)),
    ]
    return [_node(node, "DequantizeLinear", names, node.outputs[0], axis=_axis(scale, codes.ndim))]


def _of_activation(
    state: ImportState, node: Node, scale: Array, zero: Array, ends: tuple[int, int]
) -> list[Node]:
    dtype = _type(node)
    coding = [
        _constant(state, node, "scale", scale.astype(np.float32).reshape(-1)),
        _constant(state, node, "zero", zero.astype(dtype).reshape(-1)),
    ]
    codes = f"{node.outputs[0]}@codes"
    made = [_node(node, "QuantizeLinear", [node.input(0), *coding], codes)]
    if ends != (np.iinfo(dtype).min, np.iinfo(dtype).max):
        held = [
            _constant(state, node, part, np.array(end, dtype))
            for part, end in zip(("low", "high"), ends, strict=True)
        ]
        made.append(_node(node, "Clip", [codes, *held], f"{node.outputs[0]}@held"))
        codes = made[-1].outputs[0]
    return [*made, _node(node, "DequantizeLinear", [codes, *coding], node.outputs[0])]


def _type(node: Node) -> type[np.int8 | np.uint8]:
    return np.int8 if node.attributes.get("signed", 1) else np.uint8


def _constant(state: ImportState, node: Node, part: str, value: NDArray[Any]) -> str:
    name = f"{node.outputs[0]}@{part}"
    state.constants[name] = value
    return name


def _node(node: Node, operator: str, inputs: list[str], output: str, **attributes: Any) -> Node:
    proto = helper.make_node(operator, inputs, [output], **attributes)
    return read_node(proto, node.name, operator)
