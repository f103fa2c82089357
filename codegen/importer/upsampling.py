"""What the importer does with operators that make pictures larger, or cut pieces out of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import WEIGHT_MAX
from codegen.graph.floats import StoredIntegers
from codegen.graph.ir import Padding
from codegen.importer.layers import append_conv, dilation_of, pair, spatial_rank
from codegen.importer.nodes import Node
from codegen.importer.quantized import stored_integers
from codegen.importer.state import DilatedConv, ImportState
from codegen.importer.views import Roles, View, picture_dims
from codegen.operators.rearrange import OUTSIDE

COORDINATES_BEFORE = ("coordinate_transformation_mode", "asymmetric")
"""What Upsample and Resize did before opset 11, as attributes of today's Resize."""
NEAREST_BEFORE = ("nearest_mode", "simple")
"""The same: onnxruntime's name of what ONNX never had, down where pixels get more, else up."""

# ConvTranspose: zeros between the pixels, then a convolution with the taps in reverse.


def conv_transpose(state: ImportState, node: Node) -> None:
    """ConvTranspose of one or two spatial dimensions."""
    view, roles = state.picture(node)
    rank = spatial_rank(node, view)
    weight = state.constant(node, 1, "weight")
    groups = int(node.attributes.get("group", 1))
    channels, *size = roles.shape
    if weight.ndim != rank or weight.shape[0] != channels or groups < 1 or channels % groups:
        node.refuse(
            f"weight {list(weight.shape)} with group {groups} doesn't fit an input of {channels} "
            "channels; the model is inconsistent, export it again"
        )
    outputs = weight.shape[1] * groups
    bias = state.constant(node, 2, "bias") if node.input(2) else np.zeros(outputs)
    if bias.shape != (outputs,):
        node.refuse(f"bias {list(bias.shape)} for {outputs} channels; export the model again")

    def turned(values: NDArray[np.generic]) -> NDArray[np.generic]:
        """[I, O/groups, ...] → [O, I/groups, Kh, Kw] with the taps in reverse."""
        four = (*values.shape[:2], *((1,) if rank == 3 else ()), *values.shape[2:])
        each = values.reshape(groups, channels // groups, *four[1:])
        swapped = each.transpose(0, 2, 1, 3, 4).reshape(outputs, channels // groups, *four[2:])
        return swapped[:, :, ::-1, ::-1]

    taps = np.ascontiguousarray(turned(weight).astype(np.float64))
    kernel = (taps.shape[2], taps.shape[3])
    stored = stored_integers(
        state, node, view.tensor, 1 if groups == 1 else -1,  # groups share scales
        lambda codes: np.ascontiguousarray(turned(codes).astype(np.int16)),
    )  # fmt: skip
    stride, dilation = pair(node, "strides", rank), dilation_of(node, kernel, rank)
    op = DilatedConv(
        name=state.unique(node.name), input="", output="", weight=taps, bias=bias,
        groups=groups, stored=stored, dilation=dilation,
    )  # fmt: skip
    made = _made(node, rank, (size[0], size[1]), op.extent, stride)
    lines, pads = [], []
    for length, step, extent, (cut, wanted) in zip(size, stride, op.extent, made, strict=True):
        # The first `cut` outputs of the whole are left out: zeros before it, or pixels less.
        before = extent - 1 - cut
        spread = (length - 1) * step + 1
        first, end = max(0, -before), min(spread, wanted + extent - 1 - before)
        if end <= first:
            node.refuse(
                f"its pads leave nothing of an input of {list(roles.shape)}; use smaller pads"
            )
        lines.append([i // step if i % step == 0 else OUTSIDE for i in range(first, end)])
        pads.append((max(0, before), max(0, wanted + extent - 1 - before - end)))
    (top, bottom), (left, right) = pads
    tensor, wide = state.take_pixels(node, view, f"{node.name}_pixels", *lines)
    op = dataclasses.replace(
        op, input=tensor, output=op.name, padding=Padding(top, left, bottom, right)
    )
    append_conv(state, node, op, wide.shape, rank)


def _made(
    node: Node, rank: int, size: tuple[int, int], extent: tuple[int, int], stride: tuple[int, int]
) -> list[tuple[int, int]]:
    """By axis: how many of the outputs of the whole are left out before, and how many are made."""
    spatial = rank - 2

    def numbers(name: str, count: int) -> list[int] | None:
        if name not in node.attributes:
            return None
        value = [int(entry) for entry in node.attributes[name]]
        if len(value) not in (count, count + 2 * (name == "output_shape")):
            node.refuse(f"attribute {name} = {value}; {count} numbers are needed")
        return value[-count:]

    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        node.refuse(f"attribute auto_pad = {mode} is unknown; use explicit pads")
    pads = numbers("pads", 2 * spatial) or [0] * (2 * spatial)
    more = numbers("output_padding", spatial) or [0] * spatial
    shape = numbers("output_shape", spatial)
    result = [(0, 1)] if rank == 3 else []
    for axis in range(spatial):
        at = axis + 2 - spatial
        whole = (size[at] - 1) * stride[at] + extent[at] + more[axis]
        if shape is not None or mode.startswith("SAME"):
            wanted = shape[axis] if shape is not None else size[at] * stride[at]
            total = whole - wanted
            if total < 0:
                node.refuse(f"makes {wanted} pixels of {whole}; use explicit pads")
            result.append((total // 2 if mode == "SAME_UPPER" else total - total // 2, wanted))
        else:
            result.append((pads[axis], whole - pads[axis] - pads[axis + spatial]))
    if any(cut < 0 or wanted < 1 for cut, wanted in result):
        node.refuse(f"makes {[wanted for _, wanted in result]} pixels; use smaller pads")
    return result


# Resize: the nearest pixel, or zeros between pixels and a depthwise layer that fills them.


def resize(state: ImportState, node: Node) -> None:
    """Resize of a picture to the nearest pixel, or linear by a whole number."""
    mode = node.attributes.get("mode", "nearest")
    if mode not in ("nearest", "linear"):
        node.refuse(
            f"attribute mode = {mode}; supported are nearest, in PyTorch "
            'Upsample(mode="nearest"), and linear'
        )
    view, roles = state.picture(node)
    rank = spatial_rank(node, view)
    size = roles.shape
    factors, sizes = _factors(state, node, rank)
    lengths = []
    for axis in (1, 2):
        length = sizes[axis] if sizes else math.floor(size[axis] * factors[axis])
        if length < 1:
            node.refuse(f"makes {length} rows or columns of {list(size)}; use a larger scale")
        lengths.append(length)
        factors[axis] = length / size[axis] if sizes else factors[axis]
    if mode == "linear":
        _interpolate(state, node, view, roles, lengths)
        return
    axes = zip(size[1:], lengths, factors[1:], strict=True)
    rows, columns = (_nearest(node, *axis) for axis in axes)
    tensor, made = state.take_pixels(node, view, f"{node.name}_pixels", rows, columns)
    state.views[node.outputs[0]] = View(tensor, picture_dims(made, rank))


def _interpolate(
    state: ImportState, node: Node, view: View, roles: Roles, lengths: list[int]
) -> None:
    """Pixels apart, the outermost ones once more beside them, and weights for each distance."""
    kind = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    if kind not in ("half_pixel", "pytorch_half_pixel", "asymmetric"):
        node.refuse(
            f"attribute coordinate_transformation_mode = {kind}; supported with mode = linear are "
            "half_pixel and asymmetric, in PyTorch align_corners=False"
        )
    channels, *size = roles.shape
    lines, taps, pads = [], [], []
    for pixels, length in zip(size, lengths, strict=True):
        if length % pixels:
            node.refuse(
                f"makes {length} rows or columns of {pixels}; with mode = linear only whole "
                "factors are supported, use mode = nearest"
            )
        factor = length // pixels
        if factor == 1:
            lines.append(list(range(pixels)))
            taps.append(np.ones(1))
            pads.append((0, 0))
            continue
        # Output o lies at o + centre, where pixel i of those apart lies at factor * (i + 1).
        centre = float(factor) if kind == "asymmetric" else (1 + factor) / 2
        first, end = math.floor(centre - factor) + 1, math.ceil(centre + factor)
        taps.append(1 - np.abs(np.arange(first, end) - centre) / factor)
        last = length + end - 1  # behind what the last output sees
        lines.append(
            [
                min(max(place // factor - 1, 0), pixels - 1) if place % factor == 0 else OUTSIDE
                for place in range(max(first, 0), last)
            ]
        )
        pads.append((max(-first, 0), 0))
    rank = len(view.dims)
    tensor, wide = state.take_pixels(node, view, f"{node.name}_pixels", *lines)
    name = state.unique(node.name)
    weight = np.broadcast_to(np.outer(*taps), (channels, 1, len(taps[0]), len(taps[1]))).copy()
    op = DilatedConv(
        name, tensor, name, weight, np.zeros(channels), groups=channels,
        padding=Padding(pads[0][0], pads[1][0]), stored=_as_integers(weight),
    )  # fmt: skip
    append_conv(state, node, op, wide.shape, rank)


def _as_integers(weight: NDArray[np.float64]) -> StoredIntegers | None:
    """Taps of a linear Resize without rounding: all are multiples of the smallest one.

    None for factors so large that int8 doesn't hold them.
    """
    least = weight[weight > 0].min()
    codes = np.rint(weight / least).astype(np.int16)
    finer = WEIGHT_MAX // int(codes.max())  # taps are trained in these steps
    if finer == 0:
        return None
    return StoredIntegers(codes * finer, np.full(len(weight), least / finer), bias=None)


def _factors(state: ImportState, node: Node, rank: int) -> tuple[list[float], list[int]]:
    """Scales, or sizes, of channels, rows and columns."""
    named = node.attributes.get("axes")
    axes = [node.place(axis, rank) for axis in named] if named is not None else list(range(rank))
    scales, sizes = [1.0] * rank, list(state.view(node).sizes)
    by_size = bool(node.input(3))
    given = state.constant(node, 3 if by_size else 2, "sizes" if by_size else "scales").reshape(-1)
    if len(given) != len(axes):
        node.refuse(f"has {len(given)} numbers for {len(axes)} dimensions; export the model again")
    if node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        node.refuse("keeps the aspect ratio; give it the sizes that it makes")
    for axis, value in zip(axes, given.tolist(), strict=True):
        if by_size:
            scales[axis] = 1.0 if int(value) == sizes[axis] else math.inf
            sizes[axis] = int(value)
        else:
            scales[axis] = float(value)
    if scales[0] != 1.0 or scales[1] != 1.0:
        node.refuse("resizes batch or channels; only height and width can be resized")
    if rank == 3:
        return [1.0, 1.0, scales[2]], [sizes[1], 1, sizes[2]] if by_size else []
    return scales[1:], sizes[1:] if by_size else []


def _nearest(node: Node, size: int, length: int, factor: float) -> list[int]:
    """Which of ``size`` pixels each of ``length`` is."""
    if length == size and factor == 1.0:
        return list(range(size))
    x, by = np.arange(length, dtype=np.float32), np.float32(factor)  # as runtimes count
    kind = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    match kind:
        case "asymmetric":
            at = x / by
        case "tf_half_pixel_for_nn":
            at = (x + 0.5) / by
        case "half_pixel":
            at = (x + 0.5) / by - 0.5
        case "pytorch_half_pixel":
            at = (x + 0.5) / by - 0.5 if length > 1 else np.zeros(1)
        case "align_corners":
            at = x * (size - 1) / (length - 1) if length > 1 else np.zeros(1)
        case _:
            node.refuse(
                f"attribute coordinate_transformation_mode = {kind}; supported are asymmetric, "
                "half_pixel, pytorch_half_pixel, tf_half_pixel_for_nn and align_corners"
            )
    rounding = node.attributes.get("nearest_mode", "round_prefer_floor")
    rounded = {
        "round_prefer_floor": np.ceil(at - 0.5),
        "round_prefer_ceil": np.floor(at + 0.5),
        "floor": np.floor(at),
        "ceil": np.ceil(at),
        "simple": np.floor(at) if factor >= 1.0 else np.ceil(at),
    }.get(rounding)
    if rounded is None:
        node.refuse(f"attribute nearest_mode = {rounding} is unknown; use floor")
    return [int(place) for place in np.clip(rounded, 0, size - 1)]


# Channels that become pixels, and pixels that become channels.


def depth_to_space(state: ImportState, node: Node) -> None:
    """DepthToSpace: the same values in other dimensions."""
    size, (_, channels, height, width) = _blocks(state, node)
    mode = node.attributes.get("mode", "DCR")
    if mode not in ("DCR", "CRD") or channels % (size * size):
        node.refuse(
            f"makes blocks of {size}x{size} from {channels} channels, mode {mode}; the model is "
            "inconsistent, export it again"
        )
    each = channels // (size * size)
    split = [size, size, each] if mode == "DCR" else [each, size, size]
    whole = dataclasses.replace(node, outputs=(f"{node.outputs[0]}@blocks",))
    state.reshape(whole, [1, *split, height, width])
    view = state.views[whole.outputs[0]]
    batch, *parts, rows, columns = view.dims
    of_row, of_column, depth = parts if mode == "DCR" else (parts[1], parts[2], parts[0])
    dims = (batch, depth, (*rows, *of_row), (*columns, *of_column))
    state.views[node.outputs[0]] = dataclasses.replace(view, dims=dims)


def space_to_depth(state: ImportState, node: Node) -> None:
    """SpaceToDepth: the same values in other dimensions."""
    size, (_, channels, height, width) = _blocks(state, node)
    if height % size or width % size:
        node.refuse(
            f"cuts {height}x{width} pixels into blocks of {size}x{size}; use a picture of whole "
            "blocks"
        )
    whole = dataclasses.replace(node, outputs=(f"{node.outputs[0]}@blocks",))
    state.reshape(whole, [1, channels, height // size, size, width // size, size])
    view = state.views[whole.outputs[0]]
    batch, depth, rows, of_row, columns, of_column = view.dims
    dims = (batch, (*of_row, *of_column, *depth), rows, columns)
    state.views[node.outputs[0]] = dataclasses.replace(view, dims=dims)


def _blocks(state: ImportState, node: Node) -> tuple[int, tuple[int, ...]]:
    """Pixels along a block, and the input's shape (batch, channels, height, width)."""
    sizes, size = state.view(node).sizes, int(node.attributes.get("blocksize", 0))
    if len(sizes) != 4 or size < 1:
        node.refuse(
            f"makes blocks of {size}x{size} from a tensor of {len(sizes)} dimensions; needed is "
            "(batch, channels, height, width)"
        )
    return size, sizes
