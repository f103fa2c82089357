"""What the importer does with Pad: zeros, numbers and copies around pictures and signals."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

import numpy as np

from codegen.graph.floats import FloatConv
from codegen.graph.ir import Padding
from codegen.importer.constants import Constants
from codegen.importer.layers import concat, sum_of
from codegen.importer.nodes import Node
from codegen.importer.scaling import add, append_affine
from codegen.importer.state import ImportState
from codegen.importer.views import View, axes_of, channels_last_dims, picture_dims

_Copies: TypeAlias = Literal["edge", "reflect", "wrap"]
_Pads: TypeAlias = Mapping[int, tuple[int, int]]

_MOST_COPIES: Mapping[_Copies, float] = {"edge": np.inf, "reflect": -1.0, "wrap": 0.0}
"""Modes of Pad that copy, and by how much more than a dimension's size they can pad it."""

_LOWEST = -1e30  # below it a number is none that a maximum could be


def pads_to_max_pools(state: ImportState, constants: Constants) -> None:
    """Makes what a Pad puts before a max pool, below all numbers, the pool's own padding.

    So PyTorch code pads as TensorFlow does. A pool with ceil_mode sees where the picture ends.
    """
    makers = {name: node for node in state.nodes for name in node.outputs}
    for index, pool in enumerate(state.nodes):
        before = makers.get(pool.input(0))
        if pool.operator != "MaxPool" or before is None or before.operator != "Pad":
            continue
        rank = 2 + len(pool.attributes.get("kernel_shape", ()))
        pads, value = (constants.value(before.input(i)) for i in (1, 2))
        explicit = pool.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        if pads is None or value is None or float(value.reshape(-1)[0]) > _LOWEST:
            continue
        if not explicit or pool.attributes.get("ceil_mode", 0):
            continue
        named = constants.value(before.input(3)) if before.input(3) else np.arange(rank)
        if named is None or pads.size != 2 * named.size or pads.min() < 0:
            continue
        around = np.zeros((2, rank), dtype=int)
        around[:, named.reshape(-1)] = pads.reshape(2, -1)
        if around[:, :2].any():
            continue
        own = np.asarray(pool.attributes.get("pads", [0] * (2 * rank - 4))).reshape(2, -1)
        whole = (around[:, 2:] + own).reshape(-1).tolist()
        state.nodes[index] = dataclasses.replace(
            pool,
            inputs=(before.input(0), *pool.inputs[1:]),
            attributes={**pool.attributes, "auto_pad": "NOTSET", "pads": whole},
        )


def pad(state: ImportState, node: Node) -> None:
    """Pad with zeros around height and width, which stand before channels where these are last,
    with another number, or with what a tensor has elsewhere along a dimension; zeros as channels
    come from a 1x1 convolution, and what is padded by less than 0 is cut."""
    mode = node.attributes.get("mode", "constant")
    copies = next((kind for kind in _MOST_COPIES if kind == mode), None)
    if mode != "constant" and copies is None:
        node.refuse(f"attribute mode = {mode} is unknown; use constant, {', '.join(_MOST_COPIES)}")
    pads = state.constant(node, 1, "pads").astype(int).reshape(-1).tolist()
    rank = len(state.padded_view(node).dims)
    axes = list(range(rank))
    if node.input(3):
        axes = [node.place(a, rank) for a in state.constant(node, 3, "axes").reshape(-1)]
    if len(pads) != 2 * len(axes):
        node.refuse(f"has {len(pads)} pads for {len(axes)} dimensions; export the model again")
    ends = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    by_axis = {axis: around for axis, around in ends.items() if any(around)}
    if not by_axis:
        state.rename(node)
        return
    if 0 in by_axis:
        node.refuse(f"pads = {pads}; the batch can't be padded")
    if copies is not None:
        _pad_with_copies(state, node, copies, by_axis)
        return
    value = _value(state, node)
    inner = node
    if min(pads) < 0:
        inner = _cut(state, node, by_axis)
        by_axis = {axis: (max(a, 0), max(b, 0)) for axis, (a, b) in by_axis.items()}
    if value == 0.0:
        _pad_with_zeros(state, inner, by_axis)
        return
    # A number around is what zeros are around what is less by that number.
    less, wide = (f"{node.outputs[0]}@{role}" for role in ("less", "wide"))
    lower = dataclasses.replace(inner, outputs=(less,))
    append_affine(state, lower, state.view(lower), np.array(1.0), np.array(-value), ())
    _pad_with_zeros(state, dataclasses.replace(inner, inputs=(less,), outputs=(wide,)), by_axis)
    higher = dataclasses.replace(inner, inputs=(wide,))
    append_affine(state, higher, state.view(higher), np.array(1.0), np.array(value), ())


def concat_any(state: ImportState, node: Node) -> None:
    """Concat, of which constants at its ends are added to the tensor with zeros in their place."""
    known = [name in state.constants for name in node.inputs]
    if not any(known) or all(known):
        concat(state, node)
        return
    if state.reads_codes(node):
        node.refuse("joins codes with constants; put DequantizeLinear before both")
    first, last = known.index(False), len(known) - known[::-1].index(False)
    if any(known[first:last]):
        node.refuse(
            "has a constant between two tensors; concatenate the tensors first, then the constant"
        )
    middle, wide = (f"{node.outputs[0]}@{role}" for role in ("tensors", "wide"))
    concat(state, dataclasses.replace(node, inputs=node.inputs[first:last], outputs=(middle,)))
    sizes = state.view(dataclasses.replace(node, inputs=(middle,))).sizes
    axis = node.place(int(node.attributes.get("axis", 1)), len(sizes))
    parts = [
        np.zeros(sizes) if index == first else state.constant(node, index, "constant")
        for index in range(len(known))
        if known[index] or index == first
    ]
    whole = np.concatenate(parts, axis)
    before = sum(part.shape[axis] for part in parts[:first])
    pads = np.zeros((2, len(sizes)), dtype=np.int64)
    pads[:, axis] = before, whole.shape[axis] - before - sizes[axis]
    state.constants.update({f"{wide}@pads": pads.reshape(-1), f"{wide}@values": whole})
    pad(
        state,
        dataclasses.replace(node, inputs=(middle, f"{wide}@pads"), outputs=(wide,), attributes={}),
    )
    add(state, dataclasses.replace(node, inputs=(wide, f"{wide}@values")))


def _value(state: ImportState, node: Node) -> float:
    """The real number that is put around."""
    value = 0.0
    if node.input(2):
        value = float(state.constant(node, 2, "value", finite=False).reshape(-1)[0])
    if abs(value) >= -_LOWEST:
        node.refuse(
            f"pads with the value {value:g}, which only max pools without ceil_mode take; use "
            "their own pads"
        )
    value = state.real_value(node, value)
    if value != 0.0 and state.reads_codes(node):
        node.refuse(
            f"pads codes with one that stands for {value:g}; use the zero point, or pad before "
            "QuantizeLinear"
        )
    return value


def _cut(state: ImportState, node: Node, pads: _Pads) -> Node:
    """The node on what is left where pads are below 0."""
    view = state.view(node)
    for axis, (before, after) in pads.items():
        size = view.sizes[axis]
        left = range(max(-before, 0), size - max(-after, 0))
        if len(left) == 0:
            node.refuse(f"pads dimension {axis} by {[before, after]}, which leaves nothing of it")
        view = state.take(node, view, axis, left)
    cut = f"{node.outputs[0]}@cut"
    state.views[cut] = view
    return dataclasses.replace(node, inputs=(cut, *node.inputs[1:]))


def _pad_with_zeros(state: ImportState, node: Node, pads: _Pads) -> None:
    view = state.padded_view(node)
    rank = len(view.dims)
    last = rank in (3, 4) and rank - 1 not in pads and (1 in pads or view.tensor in state.shapes)
    if last:
        known = state.roles(node, view, channels_last=True)
        last = view.dims == channels_last_dims(known, rank) != picture_dims(known, rank)
    if not last:
        view, _ = state.picture(node, padded=True)
        if any(pads.get(1, ())):
            view = _with_channels_of_zeros(state, node, view, *pads[1])
    rows, columns = (rank - 3, rank - 2) if last else (rank - 2, rank - 1)
    top, bottom = pads.get(rows, (0, 0)) if rank == 4 else (0, 0)
    left, right = pads.get(columns, (0, 0)) if rank > 2 else (0, 0)
    more = sum_of(Padding(top, left, bottom, right), view.padding)
    state.views[node.outputs[0]] = dataclasses.replace(view, padding=more)


def _with_channels_of_zeros(
    state: ImportState, node: Node, view: View, before: int, after: int
) -> View:
    """``view``, a picture, with more channels, as shortcuts without weights have them."""
    roles = state.roles(node, view)
    count = roles.shape[0]
    weight = np.eye(before + count + after, count, -before)[:, :, np.newaxis, np.newaxis]
    name = state.unique(node.name)
    op = FloatConv(name, view.tensor, name, weight, np.zeros(len(weight)))
    made = dataclasses.replace(roles, channels=axes_of(len(weight)))
    state.add(op, made)
    return dataclasses.replace(view, tensor=name, dims=picture_dims(made, len(view.dims)))


def _pad_with_copies(state: ImportState, node: Node, mode: _Copies, pads: _Pads) -> None:
    view = state.view(node)
    for axis, around in pads.items():
        size = view.sizes[axis]
        most = size + _MOST_COPIES[mode]
        if min(around) < 0 or max(around) > most:
            possible = "0 or more" if most == np.inf else f"0 to {most:g}"
            node.refuse(
                f"pads dimension {axis} by {list(around)}; mode {mode} pads {size} entries by "
                f"{possible}"
            )
        entries = np.pad(np.arange(size), around, mode=mode)  # modes have ONNX's names there
        view = state.take(node, view, axis, entries.tolist())
    state.views[node.outputs[0]] = view
