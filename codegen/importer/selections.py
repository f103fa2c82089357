"""What the importer does with parts of a tensor: Gather, Slice, Split."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from codegen.importer.nodes import Node
from codegen.importer.pairs import repeat
from codegen.importer.state import ImportState
from codegen.importer.views import View


def gather(state: ImportState, node: Node) -> None:
    """Gather with constant indices: one as x[:, 3] does, a row of them, or a table of as many
    dimensions as it makes, which is PyTorch's as_strided."""
    view = state.view(node)
    sizes = list(view.sizes)
    index = state.constant(node, 1, "indices").astype(int)
    axis = node.place(node.attributes.get("axis", 0), len(sizes))
    chosen = index.reshape(-1).tolist()
    if any(not -sizes[axis] <= entry < sizes[axis] for entry in chosen):
        node.refuse(
            f"picks entries {min(chosen)} … {max(chosen)} of a dimension of {sizes[axis]}; the "
            "model is inconsistent, export it again"
        )
    if sizes[axis] == 1 and len(chosen) > 1:
        repeat(state, node, [len(chosen) if at == axis else 1 for at in range(len(sizes))])
    else:
        _choose(state, node, view, axis, [entry % sizes[axis] for entry in chosen])
    if index.ndim != 1:
        sizes[axis : axis + 1] = index.shape
        whole = dataclasses.replace(node, inputs=node.outputs)
        state.reshape(whole, sizes)


def slice_(state: ImportState, node: Node) -> None:
    """Slice with constant starts and ends, one dimension after the other."""
    view = state.view(node)
    starts, ends = (
        state.constant(node, index, role).astype(object).reshape(-1).tolist()
        for index, role in ((1, "starts"), (2, "ends"))
    )
    rank = len(view.dims)
    axes, steps = list(range(len(starts))), [1] * len(starts)
    if node.input(3):
        axes = state.constant(node, 3, "axes").astype(int).reshape(-1).tolist()
    if node.input(4):
        steps = state.constant(node, 4, "steps").astype(int).reshape(-1).tolist()
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        node.refuse(
            f"has {len(starts)} starts, {len(ends)} ends, {len(axes)} axes and steps {steps}; the "
            "model is inconsistent, export it again"
        )
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        place = node.place(axis, rank)
        view = state.take(node, view, place, _range(start, end, step, view.sizes[place]))
    state.views[node.outputs[0]] = view


def _range(start: float, end: float, step: int, size: int) -> range:
    """The entries of a dimension of ``size`` that a Slice picks; ends are cut to what there is."""
    start, end = (place + size if place < 0 else place for place in (start, end))
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first, stop = (int(min(max(place, low), high)) for place in (start, end))
    return range(max(first, 0), stop, step)


def split(state: ImportState, node: Node) -> None:
    """Split into parts of given sizes, or of equal ones."""
    view = state.view(node)
    axis = node.place(node.attributes.get("axis", 0), len(view.dims))
    size, count = view.sizes[axis], len(node.outputs)
    if node.input(1):
        parts = state.constant(node, 1, "split").astype(int).reshape(-1).tolist()
    else:
        each = -(-size // count)
        parts = [min(each, size - each * index) for index in range(count)]
    if len(parts) != count or sum(parts) != size or min(parts) < 1:
        node.refuse(f"splits {size} entries into {parts}; the model is inconsistent")
    ends = list(itertools.accumulate(parts, initial=0))
    for output, first, end in zip(node.outputs, ends, ends[1:], strict=False):
        if output:
            one = dataclasses.replace(node, outputs=(output,))
            _choose(state, one, view, axis, range(first, end))


def reverse_sequence(state: ImportState, node: Node) -> None:
    """ReverseSequence of all steps, which is what exporters write for a flip."""
    view = state.view(node)
    rank = len(view.dims)
    batch, time = (
        node.place(node.attributes.get(name, default), rank)
        for name, default in (("batch_axis", 1), ("time_axis", 0))
    )
    steps = view.sizes[time]
    lengths = state.constant(node, 1, "sequence_lens").reshape(-1)
    if view.dims[batch] != () or (lengths != steps).any():
        node.refuse(
            f"reverses {lengths.astype(int).tolist()} of {steps} steps; export it for windows of "
            "one length"
        )
    if rank == 3:  # features are the channels of a sequence
        state.roles(
            node, View(view.tensor, ((), view.dims[time], view.dims[2])), channels_last=True
        )
    _choose(state, node, view, time, range(steps)[::-1])


def _choose(state: ImportState, node: Node, view: View, place: int, indices: Sequence[int]) -> None:
    state.views[node.outputs[0]] = state.take(node, view, place, indices)
