"""What the importer does with normalizations of each sample, in one node or spelled in many.

PyTorch writes a LayerNorm for opsets below 17, and Keras' exporters for any, as mean, difference,
square, mean, sum with epsilon, root, and products and sums that differ from file to file; an
RMSNorm, below opset 23, as the same without mean and difference.
`find_normalizations` looks for these before any handler sees them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from onnx import numpy_helper

from codegen.graph.floats import NO_CLAMP
from codegen.importer.draft import DraftGraph
from codegen.importer.nodes import Node
from codegen.importer.scaling import append_affine
from codegen.importer.state import Affine, Array, ImportState, Normalization
from codegen.importer.views import Group, Roles, View
from codegen.operators.layer_normalization import FloatLayerNormalization

_ONE, _ZERO = np.array(1.0), np.array(0.0)


def layer_normalization(state: ImportState, node: Node) -> None:
    """LayerNormalization or RMSNormalization, or what `find_normalizations` has made, which says
    its axes."""
    view = state.view(node)
    rank = len(view.dims)
    if "axes" not in node.attributes:
        first = node.place(node.attributes.get("axis", -1), rank)
        places = tuple(range(first, rank))
        scale = _of_a_group(node, state.constant(node, 1, "scale"), len(places))
        bias = _ZERO
        if node.input(2):
            bias = _of_a_group(node, state.constant(node, 2, "bias"), len(places))
    else:
        axes = node.attributes["axes"] or range(2, rank)
        places = tuple(sorted(node.place(axis, rank) for axis in axes))
        scale, bias = _ONE, _ZERO
    if places == (rank - 1,) and view.tensor not in state.shapes:
        state.expected_channels = view.dims[-1]
    _normalize(state, node, places, scale, bias)


def _of_a_group(node: Node, values: Array, rank: int) -> Array:
    """A constant without the dimensions before the last ``rank``, along which it may not vary."""
    each = values.reshape(-1, *values.shape[max(values.ndim - rank, 0) :])
    if np.ptp(each, axis=0).any():
        node.refuse(
            f"its constant of shape {list(values.shape)} varies beyond the {rank} dimensions that "
            "it normalizes; multiply or add it behind the node"
        )
    first: Array = each[0]
    return first


def group_normalization(state: ImportState, node: Node) -> None:
    """GroupNormalization: its groups as dimensions of their own, and constants behind them."""
    groups = int(node.attributes.get("num_groups", 0))
    sizes = state.view(node).sizes
    if groups < 1 or sizes[1] % groups:
        node.refuse(f"has {groups} groups of {sizes[1]} channels; the model is inconsistent")
    apart, normal, whole = (f"{node.outputs[0]}@{step}" for step in ("groups", "normal", "whole"))
    split = dataclasses.replace(node, outputs=(apart,))
    state.reshape(split, (sizes[0], groups, math.prod(sizes[1:]) // groups))
    each = dataclasses.replace(node, inputs=(apart,), outputs=(normal,))
    _normalize(state, each, (2,))
    state.reshape(dataclasses.replace(node, inputs=(normal,), outputs=(whole,)), sizes)
    _by_channel(state, node, whole)


def instance_normalization(state: ImportState, node: Node) -> None:
    """InstanceNormalization, as which PyTorch also writes a GroupNorm, with groups for channels."""
    sizes, normal = state.view(node).sizes, f"{node.outputs[0]}@normal"
    each = dataclasses.replace(node, outputs=(normal,))
    places = tuple(range(2, len(sizes)))
    _normalize(state, each, places)
    _by_channel(state, node, normal)


def _by_channel(state: ImportState, node: Node, normal: str) -> None:
    """What the node makes of ``normal`` with its scale and bias, one of each per channel."""
    view = state.views[normal]
    channels = view.sizes[1]
    scale, bias = (state.constant(node, i, role) for i, role in ((1, "scale"), (2, "bias")))
    if scale.shape != (channels,) or bias.shape != (channels,):
        node.refuse(f"its scale and bias don't have the {channels} channels of its input")
    if (scale == 1).all() and (bias == 0).all():
        state.views[node.outputs[0]] = view
        return
    append_affine(state, node, view, scale, bias, view.dims[1])


def _normalize(
    state: ImportState,
    node: Node,
    places: tuple[int, ...],
    scale: Array = _ONE,
    bias: Array = _ZERO,
) -> None:
    """Normalizes the dimensions ``places`` together; constants broadcast along these."""
    view = state.view(node)
    epsilon = float(node.attributes.get("epsilon", 1e-5))
    if epsilon < 0:
        node.refuse(f"attribute epsilon = {epsilon:g}; it can't be negative, export it again")
    sizes = [view.sizes[place] for place in places]
    gain, shift = (np.broadcast_to(values, sizes).reshape(-1) for values in (scale, bias))
    axes = tuple(axis for place in places for axis in view.dims[place])
    if not _fits(state, view, axes):
        rest = tuple(axis for group in view.dims for axis in group if axis not in axes)
        view = state.transposed(node.name, view, Roles(axes, (), rest))
    name = state.unique(node.name)
    op = Normalization(name, view.tensor, name, gain, shift, axes, epsilon, node)
    state.append_elementwise(node, op, view)


def _fits(state: ImportState, view: View, axes: Group) -> bool:
    """Whether groups of ``axes`` lie one behind the other in the view's tensor.

    Where that is the input and nothing has said yet what its axes are, the whole of it does, and
    what is taken for the channels.
    """
    if view.tensor not in state.shapes:
        return len(axes) == sum(map(len, view.dims)) or axes == state.expected_channels
    return _last_of(state.roles_of(view.tensor), axes) is not None


def _last_of(roles: Roles, axes: Group) -> Group | None:
    """``axes`` in the order that elements have on the device, None where others lie between."""
    elements = (*roles.height, *roles.width, *roles.channels)
    last = elements[len(elements) - len(axes) :]
    return last if set(last) == set(axes) else None


def lay_out_normalizations(state: ImportState) -> None:
    """Gives each normalization the order of elements that its tensor has on the device."""
    for name, op in state.ops.items():
        if not isinstance(op, Normalization):
            continue
        if name not in state.shapes:
            state.roles(op.node, state.views[op.node.outputs[0]])  # settles the input's
        last = _last_of(state.roles_of(name), op.axes)
        if last is None:
            op.node.refuse(
                "normalizes the last dimension of the model's input, which what follows doesn't "
                "take for the channels; normalize behind the first layer, or the whole input"
            )
        sizes, order = [axis.size for axis in op.axes], [op.axes.index(axis) for axis in last]
        gain, shift = (
            values.reshape(sizes).transpose(order).reshape(-1) for values in (op.gain, op.shift)
        )
        centred = op.node.operator != "RMSNormalization"
        state.ops[name] = FloatLayerNormalization(
            op.name, op.input, op.output, gain, shift, op.epsilon, centred=centred
        )


def fold_into_normalizations(draft: DraftGraph) -> None:
    """A sum or product with constants behind a normalization goes into that one's."""
    for op in draft.each(Affine):
        made = draft.ops.get(op.input)
        if not isinstance(made, FloatLayerNormalization) or op.below is not None:
            continue
        if made.clamp != NO_CLAMP or made.output in draft.codings:
            continue
        if not draft.only_reader(made.output):
            continue
        shape, count = draft.shapes[made.output], len(made.gain)
        gain, shift = (
            np.moveaxis(np.broadcast_to(part, shape), 0, -1).reshape(-1, count)
            for part in (op.gain, op.shift)
        )
        if np.ptp(gain, axis=0).any() or np.ptp(shift, axis=0).any():
            continue  # one group has others than the next
        draft.ops[made.output] = dataclasses.replace(
            made, gain=made.gain * gain[0], shift=made.shift * gain[0] + shift[0]
        )
        coding = draft.codings.pop(op.output, None)
        if coding is not None:
            draft.codings[made.output] = coding
        draft.remove(op, made.output)


# Normalizations spelled in many nodes.


class _Mean(NamedTuple):
    """A mean of tensor ``of`` over ``axes`` (None: all but batch and channels), times ``sign``."""

    of: str
    axes: tuple[int, ...] | None
    sign: int


class _Spread(NamedTuple):
    """One over the deviation of tensor ``of``, or where it isn't ``centred`` over the root of its
    mean square, times the constants ``gains``."""

    of: str
    axes: tuple[int, ...] | None
    epsilon: float
    gains: tuple[str, ...]
    centred: bool


def find_normalizations(state: ImportState) -> None:
    """Puts one LayerNormalization or RMSNormalization, and what follows, in the place of nodes that
    spell it.

    What made their mean and deviation stays; nothing looks at it where nothing else needs it.
    """
    spelled = _Spelled(state)
    state.nodes = [made for node in state.nodes for made in spelled.replaced(node)]


class _Spelled:
    """Nodes by what they make."""

    def __init__(self, state: ImportState) -> None:
        self._constants = state.constants
        self._makers = {name: node for node in state.nodes for name in node.outputs if name}

    def replaced(self, node: Node) -> Iterator[Node]:
        """``node``, or if it is the last of a normalization, what stands for it."""
        found = self._found(node)
        if found is None:
            yield node
            return
        spread, bias = found
        steps = [("Mul", gain) for gain in spread.gains] + ([("Add", bias)] if bias else [])
        outputs = [f"{node.outputs[0]}@{index}" for index in range(len(steps))] + [node.outputs[0]]
        own: dict[str, Any] = {"axes": spread.axes, "epsilon": spread.epsilon}
        yield dataclasses.replace(
            node, operator="LayerNormalization" if spread.centred else "RMSNormalization",
            inputs=(spread.of,), outputs=(outputs[0],), attributes=own,
        )  # fmt: skip
        for (operator, constant), source, output in zip(
            steps, outputs[:-1], outputs[1:], strict=True
        ):
            inputs = (source, constant)
            yield dataclasses.replace(
                node, operator=operator, inputs=inputs, outputs=(output,), attributes={}
            )

    def _found(self, node: Node) -> tuple[_Spread, str] | None:
        """The normalization that ``node`` ends, and the name of its bias if it adds that."""
        sides = (node.inputs, node.inputs[::-1]) if len(node.inputs) == 2 else ()
        match node.operator:
            case "Div" if sides:
                spread = self._deviation(node.inputs[1])
                if spread is not None and self._is_divided(node.inputs[0], spread):
                    return spread, ""
            case "Mul":
                for value, factor in sides:
                    spread = self._spread(factor)
                    if spread is not None and self._is_divided(value, spread):
                        return spread, ""
            case "Add":
                for value, rest in sides:
                    spread = self._scaled(value)
                    bias = None if spread is None else self._less_mean(rest, spread)
                    if spread is not None and bias is not None:
                        return spread, bias
            case "Sub":
                spread = self._scaled(node.inputs[0])
                if spread is not None and self._is_scaled_mean(node.inputs[1], spread, 1):
                    return spread, ""
        return None

    def _scaled(self, name: str) -> _Spread | None:
        """The deviation by which ``name`` is a tensor divided, not less its mean yet."""
        for value, factor in self._sides(name, "Mul"):
            spread = self._spread(factor)
            if spread is not None and spread.centred and spread.of == value:
                return spread
        return None

    def _less_mean(self, name: str, spread: _Spread) -> str | None:
        """The bias where ``name`` is that less the scaled mean; '' where there is none."""
        if self._is_scaled_mean(name, spread, -1):
            return ""
        for mean, bias in self._sides(name, "Add"):
            if self._is_constant(bias) and self._is_scaled_mean(mean, spread, -1):
                return bias
        node = self._makers.get(name)
        if node is not None and node.operator == "Sub" and self._is_constant(node.inputs[0]):
            return node.inputs[0] if self._is_scaled_mean(node.inputs[1], spread, 1) else None
        return None

    def _is_scaled_mean(self, name: str, spread: _Spread, sign: int) -> bool:
        return any(
            self._mean(mean) == _Mean(spread.of, spread.axes, sign) and self._spread(by) == spread
            for mean, by in self._sides(name, "Mul")
        )

    def _is_divided(self, name: str, spread: _Spread) -> bool:
        """Whether ``name`` is what a normalization by ``spread`` divides."""
        if not spread.centred:
            return name == spread.of
        return self._centred(name) == _Mean(spread.of, spread.axes, 1)

    def _centred(self, name: str) -> _Mean | None:
        """The mean that ``name`` is a tensor less of."""
        node = self._makers.get(name)
        if node is None or node.operator != "Sub":
            return None
        mean = self._mean(node.inputs[1])
        return mean if mean is not None and mean.of == node.inputs[0] else None

    def _mean(self, name: str) -> _Mean | None:
        node = self._maker(name)
        if node is None:
            return None
        if node.operator == "Neg":
            mean = self._mean(node.inputs[0])
            return None if mean is None else mean._replace(sign=-mean.sign)
        if node.operator == "GlobalAveragePool":
            return _Mean(node.inputs[0], None, 1)
        # A mean without its dimensions would stand for others than those that it is of.
        if node.operator != "ReduceMean" or not int(node.attributes.get("keepdims", 1)):
            return None
        axes = node.attributes.get("axes")
        if node.input(1):
            values = self._value(node.input(1))
            axes = None if values is None else values.astype(int).reshape(-1).tolist()
        return _Mean(node.inputs[0], tuple(sorted(axes)), 1) if axes else None

    def _spread(self, name: str) -> _Spread | None:
        """One over a deviation, perhaps times a constant."""
        node = self._maker(name)
        if node is None:
            return None
        match node.operator:
            case "Reciprocal":
                return self._deviation(node.inputs[0])
            case "Div" if self._is_number(node.inputs[0], 1.0):
                return self._deviation(node.inputs[1])
            case "Pow" if self._is_number(node.inputs[1], -0.5):
                return self._uncertain(node.inputs[0])
        for value, gain in self._sides(name, "Mul"):
            spread = self._spread(value) if self._is_constant(gain) else None
            if spread is not None:
                return spread._replace(gains=(*spread.gains, gain))
        return None

    def _deviation(self, name: str) -> _Spread | None:
        node = self._maker(name)
        root = node is not None and (
            node.operator == "Sqrt"
            or (node.operator == "Pow" and self._is_number(node.inputs[1], 0.5))
        )
        return self._uncertain(node.inputs[0]) if node is not None and root else None

    def _uncertain(self, name: str) -> _Spread | None:
        """A variance or mean square, and epsilon, as what one over its root is."""
        for variance, epsilon in self._sides(name, "Add"):
            number = self._value(epsilon)
            mean = self._mean(variance)
            if number is None or number.size != 1 or mean is None or mean.sign < 0:
                continue
            value = self._squared(mean.of)
            if value is None:
                continue
            least = float(number.reshape(-1)[0])
            centred = self._centred(value)
            if centred is not None and centred.axes == mean.axes and centred.sign > 0:
                return _Spread(centred.of, centred.axes, least, (), centred=True)
            return _Spread(value, mean.axes, least, (), centred=False)
        return None

    def _squared(self, name: str) -> str | None:
        """The tensor whose square ``name`` is."""
        node = self._makers.get(name)
        if node is None:
            return None
        if node.operator == "Pow" and self._is_number(node.inputs[1], 2.0):
            return node.inputs[0]
        if node.operator == "Mul" and node.inputs[0] == node.inputs[1]:
            return node.inputs[0]
        return None

    def _sides(self, name: str, operator: str) -> list[tuple[str, str]]:
        """Both orders of the inputs of the ``operator`` that makes ``name``."""
        node = self._makers.get(name)
        if node is None or node.operator != operator or len(node.inputs) != 2:
            return []
        first, second = node.inputs
        return [(first, second), (second, first)]

    def _maker(self, name: str) -> Node | None:
        """What makes ``name``, a mean or a deviation, before it is cast."""
        node = self._makers.get(name)
        while node is not None and node.operator in ("Cast", "Identity"):
            node = self._makers.get(node.inputs[0])
        return node

    def _value(self, name: str) -> Array | None:
        """A constant of the file."""
        if name in self._constants:
            return np.asarray(self._constants[name], np.float64)
        node = self._makers.get(name)
        value = node.attributes.get("value") if node is not None else None
        if node is None or node.operator != "Constant" or value is None:
            return None
        return np.asarray(numpy_helper.to_array(value), np.float64)

    def _is_constant(self, name: str) -> bool:
        return self._value(name) is not None

    def _is_number(self, name: str, number: float) -> bool:
        value = self._value(name)
        return value is not None and value.size == 1 and float(value.reshape(-1)[0]) == number
