"""What the importer does with convolutions, matrices and concatenations."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from codegen.graph.floats import ChannelsFirst, FloatConv, window_output_shape
from codegen.graph.ir import Padding
from codegen.importer.nodes import Node
from codegen.importer.quantized import joined_coding, stored_integers
from codegen.importer.state import Array, DilatedConv, ImportState
from codegen.importer.views import (
    Group,
    Roles,
    View,
    axes_of,
    picture_dims,
    size_of,
)
from codegen.operators.concat import Concat

# Attributes: one entry per spatial dimension in the file, two here; 1-D layers get height 1.


def pair(node: Node, attribute: str, rank: int, default: int = 1) -> tuple[int, int]:
    """An attribute of one number per spatial dimension, as (rows, columns)."""
    value = list(node.attributes.get(attribute, (default,) * (rank - 2)))
    if len(value) != rank - 2 or min(value) < 1:
        node.refuse(f"attribute {attribute} = {value}; {rank - 2} positive numbers are needed")
    return (1, int(value[0])) if rank == 3 else (int(value[0]), int(value[1]))


def spatial_rank(node: Node, view: View) -> int:
    """How many dimensions the input has: 3 or 4."""
    rank = len(view.dims)
    if rank not in (3, 4):
        node.refuse(
            f"its input has shape {list(view.sizes)}; needed is (batch, channels, length) or "
            "(batch, channels, height, width)"
        )
    return rank


def explicit_padding(
    node: Node,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    rank: int,
) -> Padding:
    """Attributes auto_pad and pads, for a picture of ``size`` with the zeros that it comes with."""
    mode = node.attributes.get("auto_pad", "NOTSET")
    if mode == "VALID":
        return Padding()
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for length, window, step in zip(size, kernel, stride, strict=True):
            total = max((-(-length // step) - 1) * step + window - length, 0)
            small, large = total // 2, total - total // 2
            before.append(small if mode == "SAME_UPPER" else large)
            after.append(large if mode == "SAME_UPPER" else small)
        return Padding(before[0], before[1], after[0], after[1])
    if mode != "NOTSET":
        node.refuse(f"attribute auto_pad = {mode} is unknown; use explicit pads")
    count = 2 * (rank - 2)
    pads = [int(entry) for entry in node.attributes.get("pads", (0,) * count)]
    if len(pads) != count or min(pads) < 0:
        node.refuse(f"attribute pads = {pads}; {count} numbers of 0 or more are needed")
    return Padding(0, pads[0], 0, pads[1]) if rank == 3 else Padding(*pads)


def sum_of(a: Padding, b: Padding) -> Padding:
    """Padding ``a`` around padding ``b``."""
    return Padding(a.top + b.top, a.left + b.left, a.bottom + b.bottom, a.right + b.right)


# Convolutions.


def conv(state: ImportState, node: Node) -> None:
    """Conv of one or two spatial dimensions, full or depthwise."""
    node, phases = _joined(state, node)
    view, roles = state.picture(node, padded=True)
    rank = spatial_rank(node, view)
    weight = state.constant(node, 1, "weight")
    if weight.ndim != rank:
        node.refuse(f"weight has {weight.ndim} dimensions on an input of {rank}; both must agree")
    outputs, shape = weight.shape[0], roles.shape
    bias = state.constant(node, 2, "bias") if node.input(2) else np.zeros(outputs)
    groups = int(node.attributes.get("group", 1))
    if (
        groups < 1
        or weight.shape[1] * groups != shape[0]
        or outputs % groups
        or bias.shape != (outputs,)
    ):
        node.refuse(
            f"weight {list(weight.shape)} with group {groups} doesn't fit an input of {shape[0]} "
            "channels; the model is inconsistent, export it again"
        )
    if list(node.attributes.get("kernel_shape", weight.shape[2:])) != list(weight.shape[2:]):
        node.refuse(f"attribute kernel_shape contradicts the weight's {list(weight.shape[2:])}")
    four = (*weight.shape[:2], *((1,) if rank == 3 else ()), *weight.shape[2:])
    kernel = (four[2], four[3])
    stride = pair(node, "strides", rank)
    around = view.padding
    size = (shape[1] + around.top + around.bottom, shape[2] + around.left + around.right)
    dilation = dilation_of(node, kernel, rank, phases)
    name = state.unique(node.name)
    op = DilatedConv(
        name=name,
        input=view.tensor,
        output=name,
        weight=weight.reshape(four),
        bias=bias,
        groups=groups,
        stride=stride,
        stored=stored_integers(state, node, view.tensor, 0, lambda codes: codes.reshape(four)),
        dilation=dilation,
    )
    own = explicit_padding(node, size, op.extent, stride, rank)
    rows, columns = (size_of(each) for each in phases)
    own = Padding(own.top * rows, own.left * columns, own.bottom * rows, own.right * columns)
    padded = dataclasses.replace(op, padding=sum_of(own, around))
    append_conv(state, node, padded, shape, rank, phases)


def _joined(state: ImportState, node: Node) -> tuple[Node, tuple[Group, Group]]:
    """The node reading its picture as a whole, and the phases (rows, columns) that it saw as batch.

    TensorFlow writes a dilated convolution as one of every d-th pixel: these lie side by side as
    samples of a batch (SpaceToBatch), and are put together behind it (BatchToSpace).
    """
    view = state.padded_view(node)
    batch, rank = view.dims[0], len(view.dims)
    explicit = node.attributes.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    if batch == () or rank not in (3, 4) or view.tensor not in state.shapes or not explicit:
        return node, ((), ())
    if pair(node, "strides", rank) != (1, 1):
        return node, ((), ())
    roles, columns = state.roles_of(view.tensor), view.dims[-1]
    rows = view.dims[2] if rank == 4 else ()
    for cut in range(len(batch) + 1):
        phases = batch[:cut], batch[cut:]
        if (roles.height, roles.width) == ((*rows, *phases[0]), (*columns, *phases[1])):
            whole = dataclasses.replace(roles, channels=view.dims[1])
            name = f"{node.input(0)}@joined"
            state.views[name] = dataclasses.replace(view, dims=picture_dims(whole, rank))
            return dataclasses.replace(node, inputs=(name, *node.inputs[1:])), phases
    return node, ((), ())


def dilation_of(
    node: Node, kernel: tuple[int, int], rank: int, phases: tuple[Group, Group] = ((), ())
) -> tuple[int, int]:
    """Attribute dilations, for a picture of ``phases`` in pixels of the whole; 1 where a kernel has
    a single tap."""
    steps = zip(pair(node, "dilations", rank), phases, kernel, strict=True)
    height, width = (step * size_of(group) if size > 1 else 1 for step, group, size in steps)
    return height, width


def append_conv(
    state: ImportState,
    node: Node,
    op: DilatedConv,
    shape: ChannelsFirst,
    rank: int,
    phases: tuple[Group, Group] = ((), ()),
) -> None:
    """Adds ``op`` on a picture of ``shape`` as the maker of the node's output, which the node sees
    in ``phases`` (rows, columns) if its input was."""
    size = window_output_shape(op.extent, op.stride, op.padding, shape[1:])
    if min(size) < 1:
        node.refuse(
            f"its {op.extent[0]}x{op.extent[1]} kernel is larger than the padded input "
            f"{list(shape)}; use a larger input or fewer strides"
        )
    seen = Roles(
        axes_of(len(op.bias)),
        *(axes_of(length // size_of(group)) for length, group in zip(size, phases, strict=True)),
    )
    made = Roles(seen.channels, (*seen.height, *phases[0]), (*seen.width, *phases[1]))
    _, *dims = picture_dims(seen, rank)
    state.append(node, op, made, ((*phases[0], *phases[1]), *dims))


# Matrices: convolutions whose kernel covers the picture, or 1x1 along the last dimension.


def gemm(state: ImportState, node: Node) -> None:
    """Gemm with constant weight."""
    if int(node.attributes.get("transA", 0)):
        node.refuse("attribute transA = 1; export it with transA = 0")
    gain, bias_gain = (float(node.attributes.get(name, 1.0)) for name in ("alpha", "beta"))
    weight = state.constant(node, 1, "weight")
    if weight.ndim != 2:
        node.refuse(f"its weight has {weight.ndim} dimensions; a matrix is needed")
    output_axis = 0 if int(node.attributes.get("transB", 0)) else 1
    outputs = weight.shape[output_axis]
    bias = np.zeros(outputs)
    if node.input(2):
        constant = state.constant(node, 2, "bias") * bias_gain
        if constant.size not in (1, outputs):
            node.refuse(
                f"its bias has shape {list(constant.shape)}; one value per output is needed"
            )
        bias = bias + constant.reshape(-1)
    _linear(state, node, weight * gain, output_axis, bias, as_stored=gain == bias_gain == 1.0)


def linear_classifier(state: ImportState, node: Node) -> None:
    """scikit-learn's LinearClassifier: a matrix whose rows are classes, and their probabilities.

    A yes or no by its logit z has the probabilities of two classes whose logits are -z/2 and z/2.
    The probability of each class against all others is left out: the largest is the same.
    """
    weight, bias = _rows(node, len(node.attributes.get("intercepts", (0.0,))))
    after = node.attributes.get("post_transform", "NONE")
    if after not in ("NONE", "LOGISTIC", "SOFTMAX"):
        node.refuse(f"attribute post_transform = {after}; supported are NONE, LOGISTIC and SOFTMAX")
    if len(bias) == 1:
        weight, bias = np.concatenate([-weight, weight]), np.concatenate([-bias, bias])
    if len(bias) == 2 and after == "LOGISTIC":
        weight, bias, after = weight / 2, bias / 2, "SOFTMAX"
    scores = dataclasses.replace(node, outputs=(node.outputs[1],))
    _linear(state, scores, weight, 0, bias, as_stored=False)
    if after == "SOFTMAX":
        view = state.views[node.outputs[1]]
        state.views[node.outputs[1]] = dataclasses.replace(view, after="Softmax")


def linear_regressor(state: ImportState, node: Node) -> None:
    """scikit-learn's LinearRegressor: a matrix whose rows are targets."""
    if node.attributes.get("post_transform", "NONE") != "NONE":
        node.refuse("attribute post_transform is only supported as NONE")
    weight, bias = _rows(node, int(node.attributes.get("targets", 1)))
    _linear(state, node, weight, 0, bias, as_stored=False)


def _rows(node: Node, count: int) -> tuple[Array, Array]:
    """Weights [rows, features] and biases [rows] of a linear model of scikit-learn's."""
    weight, bias = (
        np.asarray(node.attributes.get(name, default), np.float64)
        for name, default in (("coefficients", ()), ("intercepts", (0.0,) * count))
    )
    if count == 0 or len(bias) != count or weight.size == 0 or weight.size % count:
        node.refuse(
            f"has {weight.size} coefficients and {len(bias)} intercepts for {count} rows; export "
            "the model again"
        )
    if not np.isfinite(weight).all() or not np.isfinite(bias).all():
        node.refuse("its coefficients hold NaN or infinity; train or export it again")
    return weight.reshape(count, -1), bias


def matmul(state: ImportState, node: Node) -> None:
    """MatMul of an activation with a constant matrix."""
    if node.input(0) in state.constants:
        _matrix_before(state, node)
        return
    if node.input(1) in state.views:
        node.refuse(
            "multiplies two activations, as attention does; of products only those with constant "
            "matrices are supported: use convolutions (over time) in its place"
        )
    weight = state.constant(node, 1, "weight")
    _check_matrix(node, weight, state.view(node))
    matrix = weight.reshape(weight.shape[-2:]) if weight.ndim > 1 else weight[:, np.newaxis]
    _linear(state, node, matrix, 1, np.zeros(matrix.shape[1]), as_stored=weight.ndim == 2)
    if weight.ndim == 1:
        made = state.views[node.outputs[0]]
        state.views[node.outputs[0]] = dataclasses.replace(made, dims=made.dims[:-1])


def _matrix_before(state: ImportState, node: Node) -> None:
    """A constant matrix times an activation: along the last dimension but one of that."""
    weight, view = state.constant(node, 0, "weight"), state.view(node, 1)
    _check_matrix(node, weight, view)
    if weight.ndim == 1 or len(view.dims) < 3:
        node.refuse(
            f"multiplies a constant of shape {list(weight.shape)} by a tensor of shape "
            f"{list(view.sizes)}, of which the batch is a dimension; write the activation first"
        )
    before, after = (f"{node.outputs[0]}@{role}" for role in ("turned", "product"))
    state.views[before] = _with_last_swapped(view)
    turned = dataclasses.replace(node, inputs=(before, node.input(0)), outputs=(after,))
    matrix = weight.reshape(weight.shape[-2:])
    _linear(state, turned, matrix, 0, np.zeros(len(matrix)), as_stored=weight.ndim == 2)
    state.views[node.outputs[0]] = _with_last_swapped(state.views[after])


def _with_last_swapped(view: View) -> View:
    *first, rows, columns = view.dims
    return dataclasses.replace(view, dims=(*first, columns, rows))


def _check_matrix(node: Node, weight: Array, view: View) -> None:
    """Refuses a weight that isn't one matrix, or a vector."""
    if weight.ndim < 1 or weight.ndim > len(view.dims) or set(weight.shape[:-2]) - {1}:
        node.refuse(
            f"its weight has shape {list(weight.shape)}, which isn't one matrix for all of a "
            f"tensor of shape {list(view.sizes)}; split the tensor, and use a MatMul for each part"
        )


def _linear(
    state: ImportState,
    node: Node,
    weight: Array,
    output_axis: int,
    bias: Array,
    *,
    as_stored: bool,
) -> None:
    """A layer of ``weight`` and ``bias``; ``as_stored``: they are the node's inputs unchanged."""
    view = state.view(node)
    whole = all(dimension == () for dimension in view.dims[:-1])
    roles = state.roles(node, view, channels_last=not whole)
    group = view.dims[-1]
    inputs = weight.shape[1 - output_axis]
    if size_of(group) != inputs:
        node.refuse(
            f"weight of {inputs} inputs on a tensor of shape {list(view.sizes)}; the last "
            "dimension must have as many elements"
        )
    if not whole and group != roles.channels:
        view, roles = _with_channels(state, node, 0, view, len(view.dims) - 1)
    channels, height, width = roles.shape
    kernel = (height, width) if whole else (1, 1)

    def arranged(values: NDArray[np.generic]) -> NDArray[np.generic]:
        rows = values if output_axis == 0 else values.T
        canonical = [*roles.channels, *roles.height, *roles.width] if whole else list(group)
        split = rows.reshape(len(rows), *(axis.size for axis in group))
        ordered = split.transpose(0, *(1 + group.index(axis) for axis in canonical))
        return ordered.reshape(len(rows), channels, *kernel)

    name = state.unique(node.name)
    stored = stored_integers(
        state, node, view.tensor, output_axis, lambda codes: arranged(codes).astype(np.int16)
    )
    op = FloatConv(
        name=name,
        input=view.tensor,
        output=name,
        weight=arranged(weight).astype(np.float64),
        bias=bias,
        stored=stored if as_stored else None,
    )
    outputs = axes_of(len(bias))
    made = Roles(outputs, *(((), ()) if whole else (roles.height, roles.width)))
    state.append(node, op, made, (*view.dims[:-1], outputs))


# Concatenation.


def concat(state: ImportState, node: Node) -> None:
    """Concat along the channels, which a dimension becomes that isn't."""
    views = [
        state.in_order(node, index, state.view(node, index)) for index in range(len(node.inputs))
    ]
    roles = [state.roles(node, view) for view in views]
    rank = len(views[0].dims)
    axis = int(node.attributes.get("axis", 1))
    shapes = [list(view.sizes) for view in views]
    if not -rank <= axis < rank or any(len(view.dims) != rank for view in views):
        node.refuse(f"attribute axis = {axis} on shapes {shapes}; the model is inconsistent")
    axis %= rank
    beside = all(
        view.dims[axis] == () != role.channels for view, role in zip(views, roles, strict=True)
    )
    if beside and len({tuple(shape) for shape in shapes}) == 1:
        _stack(state, node, views, roles[0], axis)
        return
    for index, (view, role) in enumerate(zip(views, roles, strict=True)):
        others = [group for i, group in enumerate(view.dims) if i != axis]
        spatial = [group for group in others if group != ()]
        wanted = [group for group in (role.height, role.width) if group != ()]
        if view.dims[axis] != role.channels or spatial != wanted:
            views[index], roles[index] = _with_channels(state, node, index, view, axis)
    if len({role.shape[1:] for role in roles}) > 1:
        node.refuse(f"concatenates pictures of different sizes: {shapes}")
    name = state.unique(node.name)
    channels = axes_of(sum(role.shape[0] for role in roles))
    made = dataclasses.replace(roles[0], channels=channels)
    dims = tuple(channels if i == axis else group for i, group in enumerate(views[0].dims))
    _append_joined(
        state, node, Concat(name, tuple(view.tensor for view in views), name), made, dims
    )


def _append_joined(
    state: ImportState, node: Node, op: Concat, roles: Roles, dims: tuple[Group, ...]
) -> None:
    state.append(node, op, roles, dims)
    if state.reads_codes(node):
        state.codings[op.output] = joined_coding(state, node, op.inputs)


def _with_channels(
    state: ImportState, node: Node, index: int, view: View, place: int
) -> tuple[View, Roles]:
    """Input ``index`` of a tensor whose channels are dimension ``place``, and its axes."""
    rest = [group for i, group in enumerate(view.dims) if i != place and (i > 0 or group != ())]
    if len(rest) > 2:  # else rows stay rows, also where there is one column
        rest = [group for group in rest if group != ()]
    if len(rest) > 2:
        node.refuse(
            f"works along dimension {place} of {list(view.sizes)}; beside that one only "
            "two others larger than 1 are supported: reshape the tensor before it"
        )
    roles = Roles(view.dims[place], *([()] * (2 - len(rest)) + rest))
    view = state.views[node.input(index)] = state.transposed(node.name, view, roles)
    return view, roles


def _stack(state: ImportState, node: Node, views: list[View], roles: Roles, axis: int) -> None:
    """Tensors of one shape side by side along a dimension of size 1: as channels, outermost."""
    first = views[0]
    spatial = [group for group in (roles.height, roles.width) if group != ()]
    if [group for group in first.dims if group != ()] != [roles.channels, *spatial]:
        if len([group for group in first.dims if group != ()]) > 3:
            node.refuse(
                f"stacks {len(views)} tensors of shape {list(first.sizes)} along dimension {axis}; "
                "supported are three dimensions beside the batch: reshape them before it"
            )
        views = [state.transposed(node.name, view, _in_order_of(view)) for view in views]
        first, roles = views[0], _in_order_of(views[0])
    name = state.unique(node.name)
    each, stacked = axes_of(roles.shape[0]), axes_of(len(views))
    made = dataclasses.replace(roles, channels=(*stacked, *each))
    dims = [each if group == roles.channels else group for group in first.dims]
    dims[axis] = stacked
    op = Concat(name, tuple(view.tensor for view in views), name)
    _append_joined(state, node, op, made, tuple(dims))


def _in_order_of(view: View) -> Roles:
    """Its dimensions larger than 1 as channels, height and width."""
    groups = [group for group in view.dims if group != ()]
    return Roles(
        groups[0] if groups else (), groups[1] if len(groups) == 3 else (),
        groups[-1] if len(groups) > 1 else (),
    )  # fmt: skip
