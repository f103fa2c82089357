"""What the importer does with sums and products with constants, along any axes."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from codegen.importer.nodes import Node
from codegen.importer.pairs import product_of_two, sum_of_two
from codegen.importer.pools import reduce_mean
from codegen.importer.state import Affine, Array, ImportState
from codegen.importer.views import Group, View, size_of
from codegen.operators.functions import X
from codegen.operators.lookup import append_function


def batch_normalization(state: ImportState, node: Node) -> None:
    """BatchNormalization in inference mode, over dimension 1 whatever that is."""
    if node.attributes.get("training_mode", 0):
        node.refuse(
            "attribute training_mode = 1: it would normalize by each batch; export the model in "
            "inference mode (PyTorch: model.eval(), and training=TrainingMode.EVAL)"
        )
    gain, shift, mean, variance = (
        state.constant(node, index, role)
        for index, role in ((1, "scale"), (2, "bias"), (3, "mean"), (4, "variance"))
    )
    view = state.view(node)
    if len(view.dims) < 2:
        node.refuse(f"its input has shape {list(view.sizes)}; needed is (batch, channels, ...)")
    channels = size_of(view.dims[1])
    if any(array.shape != (channels,) for array in (gain, shift, mean, variance)):
        node.refuse(f"its parameters don't have the {channels} channels of its input")
    spread = variance + float(node.attributes.get("epsilon", 1e-5))
    if (spread <= 0).any():
        node.refuse("variance plus epsilon is not positive; train or export the model again")
    factor = gain / np.sqrt(spread)
    append_affine(state, node, view, factor, shift - mean * factor, view.dims[1])


def scaler(state: ImportState, node: Node) -> None:
    """scikit-learn's Scaler: (x - offset) * scale, one of each per feature, or for all."""
    view = state.view(node)
    offset, scale = (
        np.asarray(node.attributes.get(name, default), np.float64).reshape(-1)
        for name, default in (("offset", 0.0), ("scale", 1.0))
    )
    if len(view.dims) != 2 or {offset.size, scale.size} - {1, size_of(view.dims[-1])}:
        node.refuse(
            f"scales an input of shape {list(view.sizes)}, with {offset.size} offsets and "
            f"{scale.size} scales; it is only supported for (batch, features), with one of each "
            "per feature, or for all"
        )
    features = np.ones(size_of(view.dims[1]))
    append_affine(state, node, view, scale * features, -offset * scale * features, view.dims[1])


def add(state: ImportState, node: Node) -> None:
    """Add with a constant, or of two tensors."""
    _sum(state, node, 1.0)


def sub(state: ImportState, node: Node) -> None:
    """Sub with a constant, or of two tensors."""
    _sum(state, node, -1.0)


def _sum(state: ImportState, node: Node, sign: float) -> None:
    index = _place_of_constant(state, node)
    if index is None:
        sum_of_two(state, node, subtracts=sign < 0)
        return
    view, value, axes = with_constant(state, node, index)
    gain, shift = (sign, value) if index == 0 else (1.0, sign * value)
    append_affine(state, node, view, np.array(gain), shift, axes)


def sum_of_all(state: ImportState, node: Node) -> None:
    """Sum: additions one after another."""
    if len(node.inputs) == 1:
        state.rename(node)
        return
    node = constants_last(state, node)
    if len(node.inputs) > 2:
        partial = f"{node.outputs[0]}@{len(node.inputs) - 1}"
        first = dataclasses.replace(node, inputs=node.inputs[:-1], outputs=(partial,))
        sum_of_all(state, first)
        node = dataclasses.replace(node, inputs=(partial, node.inputs[-1]))
    add(state, node)


def mean_of_all(state: ImportState, node: Node) -> None:
    """Mean: the sum, divided by how many there were."""
    whole = f"{node.outputs[0]}@sum"
    sum_of_all(state, dataclasses.replace(node, outputs=(whole,)))
    scaled = dataclasses.replace(node, inputs=(whole,))
    share = np.array(1 / len(node.inputs))
    append_affine(state, scaled, state.view(scaled), share, np.array(0.0), ())


def mul(state: ImportState, node: Node) -> None:
    """Mul by a constant, or of two tensors."""
    index = _place_of_constant(state, node)
    if index is None:
        product_of_two(state, node)
        return
    view, value, axes = with_constant(state, node, index)
    append_affine(state, node, view, value, np.array(0.0), axes)


def div(state: ImportState, node: Node) -> None:
    """Div by a constant, of a constant by a tensor, or of two tensors."""
    if node.input(0) in state.constants and state.constants[node.input(0)].ndim == 0:
        factor = float(state.constant(node, 0, "dividend").reshape(-1)[0])
        function = ("affine", ("reciprocal", X), factor, 0.0)
        append_function(state, dataclasses.replace(node, inputs=node.inputs[1:]), function)
        return
    if node.input(1) not in state.constants:
        inverse = f"{node.outputs[0]}@inverse"
        divisor_alone = dataclasses.replace(node, inputs=node.inputs[1:], outputs=(inverse,))
        append_function(state, divisor_alone, ("reciprocal", X))
        mul(state, dataclasses.replace(node, inputs=(node.inputs[0], inverse)))
        return
    view, divisor, axes = with_constant(state, node, 1)
    if (divisor == 0).any():
        node.refuse("divides by zero; train or export the model again")
    append_affine(state, node, view, 1.0 / divisor, np.array(0.0), axes)


def neg(state: ImportState, node: Node) -> None:
    """Neg: a product with -1."""
    append_affine(state, node, state.view(node), np.array(-1.0), np.array(0.0), ())


def reduce_sum(state: ImportState, node: Node) -> None:
    """ReduceSum: the mean, times how many there were."""
    mean = f"{node.outputs[0]}@mean"
    reduce_mean(state, dataclasses.replace(node, outputs=(mean,)))
    scaled = dataclasses.replace(node, inputs=(mean,))
    view = state.view(scaled)
    count = math.prod(state.view(node).sizes) / math.prod(view.sizes)
    append_affine(state, scaled, view, np.array(count), np.array(0.0), ())


def p_relu(state: ImportState, node: Node) -> None:
    """PRelu with one slope: a function; with one for each channel, row or column: constants."""
    view, slope, axes = with_constant(state, node, 1)
    if np.ptp(slope) == 0:
        append_function(state, node, ("leaky", X, float(slope.reshape(-1)[0])))
    else:
        append_affine(state, node, view, np.array(1.0), np.array(0.0), axes, slope)


def _place_of_constant(state: ImportState, node: Node) -> int | None:
    return next((index for index in (0, 1) if node.input(index) in state.constants), None)


def constants_last(state: ImportState, node: Node) -> Node:
    """The node with its inputs in another order, for what has to begin with a tensor."""
    inputs = sorted(node.inputs, key=lambda name: name in state.constants)
    return dataclasses.replace(node, inputs=tuple(inputs))


def with_constant(state: ImportState, node: Node, index: int) -> tuple[View, Array, Group]:
    """The tensor, and the constant that is input ``index``: one number, or one for each entry of
    some axes."""
    view = state.view(node, 1 - index)
    value = state.constant(node, index, "constant")
    if value.size == 1:
        more = max(value.ndim - len(view.dims), 0)
        view = dataclasses.replace(view, dims=(*((),) * more, *view.dims))
        return view, value.reshape(()), ()
    sizes = [1] * (len(view.dims) - value.ndim) + list(value.shape)
    varying = [place for place, size in enumerate(sizes) if size > 1]
    if len(sizes) > len(view.dims) or any(sizes[p] != view.sizes[p] for p in varying):
        node.refuse(
            f"combines a tensor of shape {list(view.sizes)} with a constant of shape "
            f"{list(value.shape)}; along each dimension the constant must have size 1 or the "
            "tensor's: repeat the tensor before it (Expand)"
        )
    if np.ptp(value) == 0:
        return view, value.reshape(-1)[0], ()
    axes = tuple(axis for place in varying for axis in view.dims[place])
    return view, value.reshape(-1), axes


def append_affine(
    state: ImportState,
    node: Node,
    view: View,
    gain: Array,
    shift: Array,
    axes: Group,
    below: Array | None = None,
) -> None:
    """Adds gain · x + shift, where x < 0 below · x + shift, as the maker of the node's output.

    Constants are one number, or one for each entry of ``axes``.
    """
    name = state.unique(node.name)
    op = Affine(name, view.tensor, name, gain, shift, below, axes)
    state.append_elementwise(node, op, view)
