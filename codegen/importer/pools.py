"""What the importer does with pools, and with means and maxima over dimensions."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from codegen.graph.floats import FloatConv, window_output_shape
from codegen.graph.ir import Padding
from codegen.importer.layers import explicit_padding, pair, spatial_rank, sum_of
from codegen.importer.nodes import Node
from codegen.importer.state import ImportState
from codegen.importer.views import Group, Roles, View, axes_of, picture_dims
from codegen.operators.average_pool import AveragePool
from codegen.operators.channel_max import ChannelMax
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.operators.max_pool import MaxPool


def max_pool(state: ImportState, node: Node) -> None:
    """MaxPool; zeros that a Pad has put around the input become part of it first."""
    if len(node.outputs) > 1 and node.outputs[1]:
        node.refuse("has a second output (indices), which is not supported; leave it out")
    view, roles = state.picture(node)
    window, stride, padding, _ = _window(node, view, roles, Padding())
    name = state.unique(node.name)
    op = MaxPool(name, view.tensor, name, window, stride, padding)
    _append_pool(state, node, op, view, roles)


def average_pool(state: ImportState, node: Node) -> None:
    """AveragePool."""
    view, roles = state.picture(node, padded=True)
    window, stride, padding, given = _window(node, view, roles, view.padding)
    include = int(node.attributes.get("count_include_pad", 0))
    counted = sum_of(given, view.padding) if include else view.padding
    name = state.unique(node.name)
    op = AveragePool(name, view.tensor, name, window, stride, padding, counted)
    _append_pool(state, node, op, view, roles)


def _window(
    node: Node, view: View, roles: Roles, around: Padding
) -> tuple[tuple[int, int], tuple[int, int], Padding, Padding]:
    """Window, stride, padding with what ceil_mode and ``around`` add to it, padding as given."""
    rank = spatial_rank(node, view)
    if "kernel_shape" not in node.attributes:
        node.refuse("has no kernel_shape; export the model again")
    window = pair(node, "kernel_shape", rank)
    _check_dilations(node, window, rank)
    stride = pair(node, "strides", rank)
    _, height, width = roles.shape
    size = (height + around.top + around.bottom, width + around.left + around.right)
    given = explicit_padding(node, size, window, stride, rank)
    if given.top >= window[0] or given.left >= window[1]:
        node.refuse(f"pads by more than its {window[0]}x{window[1]} window; use smaller pads")
    padding = sum_of(given, around)
    if int(node.attributes.get("ceil_mode", 0)):
        more = [
            _ceil_extension(length, before, after, extent, step)
            for length, before, after, extent, step in (
                (size[0], given.top, given.bottom, window[0], stride[0]),
                (size[1], given.left, given.right, window[1], stride[1]),
            )
        ]
        padding = sum_of(padding, Padding(0, 0, *more))
    return window, stride, padding, given


def _ceil_extension(length: int, before: int, after: int, window: int, stride: int) -> int:
    """Positions behind the padding that the last, incomplete window covers."""
    total = length + before + after - window
    windows = math.ceil(total / stride) + 1
    if (windows - 1) * stride >= length + before:
        windows -= 1  # a window that starts behind the input is left out
    return max((windows - 1) * stride - total, 0)


def _check_dilations(node: Node, kernel: tuple[int, int], rank: int) -> None:
    pairs = list(zip(pair(node, "dilations", rank), kernel, strict=True))
    if any(dilation != 1 and size > 1 for dilation, size in pairs):
        value = list(node.attributes["dilations"])
        extent = "x".join(str((n - 1) * d + 1) for d, n in pairs)
        node.refuse(
            f"attribute dilations = {value}; a pool sees all that is under its window: train it "
            f"with a window of {extent} without dilations"
        )


def _append_pool(
    state: ImportState,
    node: Node,
    op: MaxPool | AveragePool,
    view: View,
    roles: Roles,
) -> None:
    _, height, width = roles.shape
    size = window_output_shape(op.window, op.stride, op.padding, (height, width))
    if min(size) < 1:
        node.refuse(
            f"its {op.window[0]}x{op.window[1]} window is larger than the padded input "
            f"{list(roles.shape)}; use a smaller window"
        )
    made = Roles(roles.channels, axes_of(size[0]), axes_of(size[1]))
    state.append(node, op, made, picture_dims(made, len(view.dims)))


# Over whole dimensions.


def global_average_pool(state: ImportState, node: Node) -> None:
    """GlobalAveragePool over all but batch and channels, which lie last where the node says so."""
    rank = len(state.view(node).dims)
    first = 1 if int(node.attributes.get("channels_last", 0)) else 2
    _reduce(state, node, tuple(range(first, rank + first - 2)), keep=True, largest=False)


def global_max_pool(state: ImportState, node: Node) -> None:
    """GlobalMaxPool over all but batch and channels."""
    view = state.view(node)
    _reduce(state, node, tuple(range(2, len(view.dims))), keep=True, largest=True)


def reduce_mean(state: ImportState, node: Node) -> None:
    """ReduceMean over height, width or both, or over the channels."""
    _reduce_axes(state, node, largest=False)


def reduce_max(state: ImportState, node: Node) -> None:
    """ReduceMax over height, width or both, or over the channels."""
    _reduce_axes(state, node, largest=True)


def _reduce_axes(state: ImportState, node: Node, largest: bool) -> None:
    rank = len(state.view(node).dims)
    if node.input(1):
        axes = state.constant(node, 1, "axes").astype(int).reshape(-1).tolist()
    else:
        axes = list(node.attributes.get("axes", ()))
    if not axes and int(node.attributes.get("noop_with_empty_axes", 0)):
        state.rename(node)
        return
    if not axes:
        node.refuse("names no axes, which reduces the batch as well; name height and width")
    keep = bool(int(node.attributes.get("keepdims", 1)))
    _reduce(state, node, tuple(node.place(axis, rank) for axis in axes), keep, largest)


def _reduce(
    state: ImportState, node: Node, axes: tuple[int, ...], keep: bool, largest: bool
) -> None:
    view = state.view(node)
    roles = state.roles(node, view)
    gone = {axis for index in axes for axis in view.dims[index]}
    spatial = {*roles.height, *roles.width}
    over_height = gone >= set(roles.height)
    over_width = gone >= set(roles.width)
    partly = (gone & set(roles.height) and not over_height) or (
        gone & set(roles.width) and not over_width
    )
    over_channels = bool(gone) and gone == set(roles.channels)
    if (gone - spatial and not over_channels) or partly:
        # What stays becomes the channels, what goes a row of pixels.
        every = [axis for group in view.dims for axis in group]
        roles = Roles(
            tuple(axis for axis in every if axis not in gone),
            (),
            tuple(axis for axis in every if axis in gone),
        )
        view = state.transposed(node.name, view, roles)
        spatial, over_height, over_width, over_channels = gone, False, True, False
    dims: list[Group] = [() if i in axes else group for i, group in enumerate(view.dims)]
    if not keep:
        dims = [group for i, group in enumerate(dims) if i not in axes]
    name = state.unique(node.name)
    channels, height, width = roles.shape
    if over_channels:
        one = dataclasses.replace(roles, channels=())
        weight = np.full((1, channels, 1, 1), 1 / channels)
        chosen: ChannelMax | FloatConv = (
            ChannelMax(name, view.tensor, name)
            if largest
            else FloatConv(name, view.tensor, name, weight, np.zeros(1))
        )
        state.append(node, chosen, one, tuple(dims))
        return
    made = Roles(
        roles.channels, () if over_height else roles.height, () if over_width else roles.width
    )
    window = (height if over_height else 1, width if over_width else 1)
    op: GlobalAveragePool | MaxPool | AveragePool
    if largest:
        op = MaxPool(name, view.tensor, name, window, window)
    elif gone == spatial:
        op = GlobalAveragePool(name, view.tensor, name)
    else:
        op = AveragePool(name, view.tensor, name, window, window)
    state.append(node, op, made, tuple(dims))
