"""DequantizeLinear as tf2onnx's --dequantize spells it for inputs: Cast, Sub, Mul.

The scale that the device's input has then is the file's, and no layer is needed that applies it.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict

import numpy as np
from onnx import helper

from codegen.importer.nodes import Node
from codegen.importer.quantized import ON_CODES
from codegen.importer.state import ImportState


def find_spelled_codes(state: ImportState) -> None:
    """Writes DequantizeLinear in the place of what makes real numbers of codes in three nodes."""
    readers: dict[str, list[Node]] = defaultdict(list)
    for node in state.nodes:
        for name in node.reads:
            readers[name].append(node)
    codes = dict(state.codes)
    for node in list(state.nodes):
        written = codes.get(node.input(0))
        if written is None:
            continue
        if ON_CODES.get(node.operator):
            codes.update(dict.fromkeys(node.outputs, written))
        elif node.operator == "Cast":
            _replace(state, node, readers, written)


def _replace(
    state: ImportState, cast: Node, readers: dict[str, list[Node]], written: np.dtype[np.generic]
) -> None:
    """Puts DequantizeLinear where ``cast`` and its only readers take off a code and scale."""
    less, times = None, None
    if (less := _only_reader(state, cast, readers, "Sub")) is not None:
        times = _only_reader(state, less, readers, "Mul")
    if less is None or times is None:
        return
    zero, scale = (state.constants.get(node.input(1)) for node in (less, times))
    if zero is None or scale is None or zero.size != 1 or scale.size != 1 or scale.item() <= 0:
        return
    code = zero.reshape(()).astype(written)
    if code != zero.item():
        return
    names = [f"{times.outputs[0]}@{part}" for part in ("scale", "zero_point")]
    state.constants.update(zip(names, (scale.reshape(()), code), strict=True))
    proto = helper.make_node(
        "DequantizeLinear", [cast.input(0), *names], list(times.outputs), times.name
    )
    made = dataclasses.replace(
        times, operator="DequantizeLinear", inputs=tuple(proto.input), attributes={}, proto=proto
    )
    place = state.nodes.index(times)
    state.nodes[place] = made
    state.nodes.remove(cast)
    state.nodes.remove(less)


def _only_reader(
    state: ImportState, node: Node, readers: dict[str, list[Node]], operator: str
) -> Node | None:
    """The ``operator`` on the result of ``node``, where nothing else reads that."""
    name = node.outputs[0]
    found = readers[name]
    alone = len(found) == 1 and name not in state.outputs
    fits = alone and found[0].operator == operator and found[0].input(0) == name
    return found[0] if fits else None
