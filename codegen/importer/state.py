"""An ONNX file as the importer's handlers see it: nodes, constants, tensors made so far.

An ONNX tensor is a `View` of a tensor of the float graph: its dimensions, each a run of the
tensor's axes. Flatten, Reshape, Transpose, Squeeze and Unsqueeze only make other views, so that it
doesn't matter how a model file writes them; zeros around a picture stay part of a view until
something reads it. Which axes are channels, height and width of the model's input is settled by
the first operation that needs to know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from codegen.errors import ModelError
from codegen.graph.floats import (
    ChannelsFirst,
    Coding,
    FloatConv,
    FloatOp,
    SampleLayout,
)
from codegen.graph.ir import Padding, Unary
from codegen.graph.names import identifier
from codegen.importer.nodes import Node, named_nodes
from codegen.importer.views import (
    Axis,
    Group,
    Roles,
    View,
    axes_of,
    channels_last_dims,
    picture_dims,
    picture_roles,
    size_of,
)
from codegen.operators import operator_of
from codegen.operators.base import Copying
from codegen.operators.gather import Gather, PictureAxis
from codegen.operators.rearrange import LARGEST, Rearrange, by_axis
from codegen.operators.transpose import Transpose

Array = NDArray[np.float64]

_INPUT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8, onnx.TensorProto.UINT8)

_OPEN = -1  # what some write in place of a symbolic size


@dataclasses.dataclass(frozen=True, eq=False)
class Integers:
    """A constant that is stored as integers with one scale, or one per entry of ``axis``.

    ``steps`` are the codes less their zero point, ``dtype`` is that of the codes.
    """

    steps: NDArray[np.int64]
    scale: Array
    axis: int
    dtype: np.dtype[Any]


@dataclasses.dataclass(frozen=True, eq=False)
class DilatedConv(FloatConv):
    """A convolution with ``dilation`` (rows, columns) from one tap to the next: never survives the
    importer's passes."""

    dilation: tuple[int, int] = (1, 1)

    @property
    def extent(self) -> tuple[int, int]:
        """(rows, columns) that its kernel sees, with those between the taps."""
        height, width = (
            (size - 1) * step + 1
            for size, step in zip(self.weight.shape[2:], self.dilation, strict=True)
        )
        return height, width


@dataclasses.dataclass(frozen=True, eq=False)
class Affine(Unary):
    """gain · x + shift, where x < 0 below · x + shift: never survives the importer's passes.

    Constants are one number or one for each entry of ``axes``. Passes see (channels, height, width)
    instead, with size 1 where a constant doesn't vary.
    """

    gain: Array
    shift: Array
    below: Array | None = None
    axes: Group = ()

    @property
    def is_per_channel(self) -> bool:
        """For passes: whether it is one affine function for each channel."""
        return self.below is None and self.gain.shape[1:] == self.shift.shape[1:] == (1, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Normalization(Unary):
    """The elements of ``axes`` normalized together, then with a gain and a shift for each in their
    order: never survives `lay_out_normalizations`, when the axes of the input are settled.
    """

    gain: Array
    shift: Array
    axes: Group
    epsilon: float
    node: Node


class ImportState:
    """State of one import: constants by name, views of tensors, operations made so far."""

    def __init__(self, graph: onnx.GraphProto, name: str) -> None:
        """Raises ModelError where inputs and outputs aren't those of one sample and one result."""
        self.name = name
        self.constants: dict[str, NDArray[Any]] = {
            entry.name: numpy_helper.to_array(entry) for entry in graph.initializer
        }
        self.integers: dict[str, Integers] = {}  # by the name of their real values
        self.ops: dict[str, FloatOp] = {}  # by output tensor, in execution order
        self.views: dict[str, View] = {}  # by ONNX name
        self.codings: dict[str, Coding] = {}  # by tensor, in quantized models
        self.codes: dict[str, np.dtype[Any]] = {}  # types by ONNX name of activations in integers
        self.nodes = named_nodes(graph)
        self._taken: set[str] = set()
        self._roles: dict[str, Roles] = {}  # by tensor; of the input once they are settled
        self._like_input: set[str] = set()  # tensors with the input's axes
        self.expected_channels: Group | None = None  # of the input, if nothing says otherwise
        self._rearranged_by: dict[str, Node] = {}  # by ONNX name: what moved its dimensions last
        self.progress = 0  # nodes read so far
        self.outputs = [output.name for output in graph.output]
        self.input = self._read_input(graph)

    def _read_input(self, graph: onnx.GraphProto) -> str:
        inputs = [entry for entry in graph.input if entry.name not in self.constants]
        if len(inputs) != 1:
            raise ModelError(_refused_inputs([entry.name for entry in inputs]))
        entry = inputs[0]
        kind = entry.type.tensor_type.elem_type
        if kind not in _INPUT_TYPES:
            shown = onnx.TensorProto.DataType.Name(kind)
            raise ModelError(
                f"input '{entry.name}' is {shown}; export the model with an input of float32, int8 "
                "or uint8"
            )
        if kind != onnx.TensorProto.FLOAT:
            self.codes[entry.name] = onnx.helper.tensor_dtype_to_np_dtype(kind)
        dims = [
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value != _OPEN else None
            for dim in entry.type.tensor_type.shape.dim
        ]
        if len(dims) < 2 or any(size is None or size < 1 for size in dims[1:]):
            shown = [size if size is not None else "?" for size in dims]
            raise ModelError(
                f"input '{entry.name}' has shape {shown}; needed are 2 or more dimensions (batch, "
                "then for example channels, height, width), all but the batch fixed when exporting"
            )
        if dims[0] not in (None, 1):
            raise ModelError(
                f"input '{entry.name}' has batch size {dims[0]}; export with batch size 1 or a "
                "symbolic one"
            )
        self.sample_shape = tuple(int(size or 0) for size in dims[1:])
        groups = [axes_of(size) for size in self.sample_shape]
        self._sample_axes = [axis for group in groups for axis in group]
        self.views[entry.name] = View(entry.name, ((), *groups))
        self._taken.add(entry.name)
        self._like_input.add(entry.name)
        return str(entry.name)

    # Reading.

    def constant(self, node: Node, index: int, role: str, *, finite: bool = True) -> Array:
        """Input ``index`` as float64 constant without NaN, nor infinity if it is to be finite."""
        name = node.input(index)
        if name not in self.constants:
            node.refuse(
                f"its {role} '{name}' is not a constant; export with weights as initializers "
                "and constant folding on"
            )
        array = np.asarray(self.constants[name], dtype=np.float64)
        if np.isnan(array).any() or (finite and np.isinf(array).any()):
            node.refuse(f"its {role} '{name}' holds NaN or infinity; train or export it again")
        return array

    def view(self, node: Node, index: int = 0) -> View:
        """Input ``index``, with zeros around it made part of the tensor."""
        view = self.padded_view(node, index)
        if view.padding == Padding():
            return view
        pad, roles = view.padding, self._roles[view.tensor]
        _, height, width = roles.shape
        rows = range(-pad.top, height + pad.bottom)
        columns = range(-pad.left, width + pad.right)
        name, grown = self.take_pixels(node, view, f"{view.tensor}_padded", rows, columns)
        rank = len(view.dims)
        order = next(
            (o for o in (picture_dims, channels_last_dims) if o(roles, rank) == view.dims), None
        )
        sides = ((roles.channels, grown.channels), (roles.height, grown.height),
                 (roles.width, grown.width))  # fmt: skip
        if order is not None:
            result = View(name, order(grown, rank))
        elif all(before or not after for before, after in sides) and all(
            group in (before for before, _ in sides) for group in view.dims if group
        ):
            wide = {before: after for before, after in sides if before}
            result = View(name, tuple(wide.get(group, ()) for group in view.dims))
        else:
            node.refuse(
                f"reads zeros around a picture whose dimensions are {list(view.sizes)} without "
                "them; transpose it behind the convolution that the zeros are for"
            )
        self.views[node.input(index)] = result
        return result

    def padded_view(self, node: Node, index: int = 0) -> View:
        """Input ``index`` for operations that add the view's padding to their own."""
        name = node.input(index)
        if name not in self.views:
            node.refuse(
                f"its input '{name}' is not computed from the model's input; fold constants when "
                "exporting"
            )
        return self.views[name]

    def reads_codes(self, node: Node) -> bool:
        """Whether the node reads an activation in integers, as QuantizeLinear makes them."""
        return any(name in self.codes for name in node.inputs)

    def real_value(self, node: Node, number: float) -> float:
        """A parameter of the node in real numbers; where it reads codes, it is one of these."""
        written = self.codes.get(node.input(0))
        if written is None:
            return number
        coding = self.codings.get(self.padded_view(node).tensor)
        if coding is None:
            node.refuse(
                "works with the integers of the model's input before it is said what they stand "
                "for; put DequantizeLinear before it"
            )
        code = number - (128 if written == np.uint8 else 0)
        return coding.scale * (code - coding.zero_point)

    def end_before(self, node: Node) -> tuple[str, str]:
        """What has made the probabilities that the node reads, and their name; '' where none."""
        return next(
            ((end, n) for n in node.inputs if n in self.views and (end := self.views[n].after)),
            ("", ""),
        )

    def picture(self, node: Node, index: int = 0, *, padded: bool = False) -> tuple[View, Roles]:
        """Input ``index`` as (batch, channels, [height,] [width]), and the axes of its tensor."""
        view = self.padded_view(node, index) if padded else self.view(node, index)
        dims = view.dims
        if len(dims) > 4 or len(dims) < 2:
            node.refuse(
                f"its input has {len(dims)} dimensions; supported are (batch, channels), "
                "(batch, channels, length) and (batch, channels, height, width)"
            )
        if view.tensor not in self._roles and dims[0] == ():
            self._settle_input(picture_roles(dims))
        view = self.in_order(node, index, view)
        wanted = picture_roles(view.dims)
        if dims[0] != () or (view.padding != Padding() and self._roles[view.tensor] != wanted):
            self._refuse_mixed(node, node.input(index))
        view = self.views[node.input(index)] = self.transposed(node.name, view, wanted)
        return view, wanted

    def is_other_than_picture(self, view: View) -> bool:
        """Whether it is settled that the dimensions aren't (batch, channels, [height,] [width])."""
        roles = self._roles.get(view.tensor)
        return roles is not None and (
            not 2 <= len(view.dims) <= 4 or view.dims[0] != () or picture_roles(view.dims) != roles
        )

    def transposed(self, name: str, view: View, wanted: Roles) -> View:
        """``view`` of a tensor with the axes ``wanted``, which node ``name`` asks for: the model's
        input if its axes aren't settled yet, another tensor where they are different."""
        if view.tensor not in self._roles:
            self._settle_input(wanted)
        roles = self._roles[view.tensor]
        if roles == wanted:
            return view
        source, target = ([*each.height, *each.width, *each.channels] for each in (roles, wanted))
        order = tuple(source.index(axis) for axis in target)
        sizes = tuple(axis.size for axis in source)
        made = self.unique(f"{name}_order")
        self.add(Transpose(made, view.tensor, made, sizes, order, wanted.shape), wanted)
        return dataclasses.replace(view, tensor=made)

    def note_rearranged(self, node: Node) -> None:
        """Remembers ``node`` where it moves dimensions. A Transpose is kept before a Reshape, which
        doesn't change the order of elements."""
        last = next((o for n in node.inputs if (o := self._rearranged_by.get(n)) is not None), None)
        if node.operator == "Transpose" or (node.operator == "Reshape" and last is None):
            last = node
        if last is not None:
            self._rearranged_by.update((name, last) for name in node.outputs)

    def _refuse_mixed(self, reader: Node, name: str) -> NoReturn:
        """Refuses what keeps ``reader`` from reading ``name`` as a picture, rather than it."""
        view = self.views[name]
        who = f"node '{reader.name}' ({reader.operator})"
        moved = self._rearranged_by.get(name)
        shown = f"its input of shape {list(view.sizes)} isn't (batch, channels, height, width) of "
        if moved is None:
            reader.refuse(f"{shown}one tensor, but mixes its dimensions; export the model again")
        moved.refuse(
            f"mixes the dimensions of what {who} reads: {shown}one tensor; leave it out, or "
            "reshape or transpose the model's input only"
        )

    def in_order(self, node: Node, index: int, view: View) -> View:
        """Input ``index`` of a tensor whose channels (rows, columns) lie as the view has them."""
        if view.tensor in self._roles:
            roles = self._roles[view.tensor]
            sides = (roles.channels, roles.height, roles.width)
            for place, group in enumerate(view.dims):
                if any(group != side and set(group) == set(side) for side in sides):
                    view = self.take(node, view, place, range(size_of(group)))
            self.views[node.input(index)] = view
        return view

    def take(self, node: Node, view: View, place: int, indices: Sequence[int]) -> View:
        """``view`` with the entries ``indices`` of dimension ``place``, in their order."""
        group, sizes = view.dims[place], list(view.sizes)
        whole = list(indices) == list(range(size_of(group)))
        if whole and (group == () or view.tensor not in self._roles):
            return view
        roles = self.roles(node, view)
        if not any(set(group) <= set(s) for s in (roles.channels, roles.height, roles.width)):
            rest = tuple(axis for i, g in enumerate(view.dims) if i != place for axis in g)
            view = self.transposed(node.name, view, Roles(group, (), rest))
            roles = self._roles[view.tensor]
        sides: dict[PictureAxis, Group] = {
            "channels": roles.channels, "height": roles.height, "width": roles.width
        }  # fmt: skip
        side = next((name for name, axes in sides.items() if set(group) <= set(axes)), None)
        if group == () or side is None or view.after or len(indices) == 0:
            node.refuse(
                f"picks {len(indices)} of dimension {place} of a tensor of shape {sizes}; 1 or "
                "more can be picked of a dimension larger than 1: reshape the tensor, or repeat "
                "its entries with Tile"
            )
        axes = sides[side]
        first = min(axes.index(axis) for axis in group)
        before = axes[:first]
        after = tuple(axis for axis in axes[first:] if axis not in group)
        order = [axes.index(axis) for axis in (*before, *group, *after)]
        every = np.arange(size_of(axes))
        places = every.reshape([axis.size for axis in axes]).transpose(order)
        chosen = places.reshape(size_of(before), size_of(group), -1)[:, list(indices)].reshape(-1)
        if np.array_equal(chosen, every):
            return view
        made = axes_of(len(indices))
        name = self.unique(node.name)
        op = Gather(name, view.tensor, name, side, tuple(chosen.tolist()))
        self.add(op, dataclasses.replace(roles, **{side: (*before, *made, *after)}))
        dims = (*view.dims[:place], made, *view.dims[place + 1 :])
        return dataclasses.replace(view, tensor=name, dims=dims)

    def take_pixels(
        self, node: Node, view: View, name: str, rows: Sequence[int], columns: Sequence[int]
    ) -> tuple[str, Roles]:
        """A tensor like ``name`` of these rows and columns of ``view``, a picture, and its axes;
        zeros where that has no such pixel."""
        if max(len(rows), len(columns)) > LARGEST:
            node.refuse(
                f"makes {len(rows)} by {len(columns)} pixels; at most {LARGEST:,} rows and columns "
                "are supported, use a smaller picture"
            )
        name = self.unique(name)
        made = Roles(self._roles[view.tensor].channels, axes_of(len(rows)), axes_of(len(columns)))
        self.add(Rearrange(name, view.tensor, name, *by_axis(rows, columns)), made)
        return name, made

    def roles(self, node: Node, view: View, *, channels_last: bool = False) -> Roles:
        """The axes of the view's tensor; settles the input's as its dimensions stand, or with the
        last one for the channels."""
        if view.tensor not in self._roles:
            channels_last = channels_last or view.dims[-1] == self.expected_channels
            batch, dims = view.dims[0], view.dims[1:]
            if channels_last:
                # tf2onnx makes one dimension of batch and time, of which one is 1.
                dims = (*view.dims[-1:], *(() if batch == () else (batch,)), *dims[:-1])
                batch = ()
            if batch != () or len(dims) > 3:
                node.refuse(f"works on the model's input in shape {list(view.sizes)}; needed is "
                            "(batch, channels, height, width)")  # fmt: skip
            self._settle_input(
                Roles(dims[0], dims[1] if len(dims) == 3 else (), dims[-1] if len(dims) > 1 else ())
            )
        return self._roles[view.tensor]

    def _settle_input(self, roles: Roles) -> None:
        for tensor in self._like_input:
            self._roles[tensor] = roles

    def with_channels_last(self, graph: onnx.GraphProto) -> ImportState | None:
        """The same import from its start, of an input whose last axis is its channels; None where
        it was one of these, or has one axis."""
        roles, groups = self._roles.get(self.input), self.views[self.input].dims[1:]
        if len(groups) not in (2, 3) or (roles is not None and roles.channels == groups[-1]):
            return None
        other = ImportState(graph, self.name)
        other.roles(other.nodes[0], other.views[other.input], channels_last=True)
        return other

    def roles_of(self, tensor: str) -> Roles:
        """The axes of a tensor that an operation has made."""
        return self._roles[tensor]

    @property
    def shapes(self) -> dict[str, ChannelsFirst]:
        """Shapes of all tensors made so far."""
        return {tensor: roles.shape for tensor, roles in self._roles.items()}

    @property
    def sample_layout(self) -> SampleLayout | None:
        """How a sample becomes the input tensor, None where it has its shape already."""
        roles = self._roles[self.input]
        axes = [*roles.channels, *roles.height, *roles.width]
        order = tuple(self._sample_axes.index(axis) for axis in axes)
        if self.sample_shape == roles.shape and order == tuple(range(len(order))):
            return None
        return SampleLayout(self.sample_shape, tuple(a.size for a in self._sample_axes), order)

    # Writing.

    def unique(self, name: str) -> str:
        """``name``, or with a number behind it where another layer's is the same in C."""
        candidate, number = name, 2
        while identifier(candidate) in self._taken:
            candidate, number = f"{name}_{number}", number + 1
        self._taken.add(identifier(candidate))
        return candidate

    def add(self, op: FloatOp, roles: Roles) -> None:
        """Adds ``op``, whose output has the axes ``roles``; what copies codes keeps the coding."""
        self.ops[op.output] = op
        self._roles[op.output] = roles
        if not isinstance(op, Unary) or op.input not in self.codings:
            return
        if isinstance(operator_of(op), Copying):
            self.codings[op.output] = self.codings[op.input]

    def append(self, node: Node, op: FloatOp, roles: Roles, dims: tuple[Group, ...]) -> None:
        """Adds ``op`` as the maker of the node's output, a view with ``dims``."""
        self.add(op, roles)
        self.views[node.outputs[0]] = View(op.output, dims)

    def append_elementwise(self, node: Node, op: FloatOp, view: View) -> None:
        """Adds an operation whose output has the axes of its input ``view``."""
        self.ops[op.output] = op
        if view.tensor in self._roles:
            self._roles[op.output] = self._roles[view.tensor]
        if view.tensor in self._like_input:
            self._like_input.add(op.output)
        self.views[node.outputs[0]] = View(op.output, view.dims)

    def rename(self, node: Node) -> None:
        """The node's output is its first input under another name."""
        name = node.input(0)
        if name in self.views:
            self.views[node.outputs[0]] = self.views[name]
        else:
            self.padded_view(node)

    def reshape(self, node: Node, target: Sequence[int]) -> None:
        """The node's output is its first input with the dimensions ``target``, all known."""
        view = self.padded_view(node) if self._only_ones(node, target) else self.view(node)
        if _can_regroup([axis.size for group in view.dims for axis in group], target):
            groups = self._regrouped(view, target)
        else:
            view, groups = self._copied(node, view, target)
        self.views[node.outputs[0]] = dataclasses.replace(view, dims=groups)

    def _regrouped(self, view: View, target: Sequence[int]) -> tuple[Group, ...]:
        """The dimensions ``target`` of the axes of ``view``, or of parts into which these are
        split."""
        axes = [axis for group in view.dims for axis in group]
        groups: list[Group] = []
        for size in target:
            group: list[Axis] = []
            while (made := size_of(tuple(group))) < size:
                axis, missing = axes.pop(0), size // made
                if axis.size > missing:
                    axis, rest = self._split(axis, missing)
                    axes.insert(0, rest)
                group.append(axis)
            groups.append(tuple(group))
        return tuple(groups)

    def _copied(
        self, node: Node, view: View, target: Sequence[int]
    ) -> tuple[View, tuple[Group, ...]]:
        """A tensor of the same elements in the order of ``view``, whose axes are ``target``."""
        roles = self.roles(node, view)
        source = [*roles.height, *roles.width, *roles.channels]
        order = [source.index(axis) for group in view.dims for axis in group]
        groups = tuple(axes_of(size) for size in target)
        axes = tuple(axis for group in groups for axis in group)
        rows, columns = (axes[:1], axes[1:2]) if len(axes) > 2 else ((), axes[:-1])
        made = Roles(axes[len(rows) + len(columns) :], rows, columns)
        name = self.unique(f"{node.name}_order")
        sizes = tuple(axis.size for axis in source)
        self.add(Transpose(name, view.tensor, name, sizes, tuple(order), made.shape), made)
        return dataclasses.replace(view, tensor=name), groups

    def lay_out_constants(self) -> None:
        """Gives constants of sums and products the shape (channels, height, width)."""
        for name, op in self.ops.items():
            if isinstance(op, Affine) and name in self._roles:
                roles = self._roles[name]
                below = None if op.below is None else _laid_out(op.below, op.axes, roles)
                gain, shift = (_laid_out(each, op.axes, roles) for each in (op.gain, op.shift))
                self.ops[name] = Affine(op.name, op.input, op.output, gain, shift, below)

    def _only_ones(self, node: Node, target: Sequence[int]) -> bool:
        old = [size for size in self.padded_view(node).sizes if size != 1]
        return old == [size for size in target if size != 1]

    def _split(self, axis: Axis, first: int) -> tuple[Axis, Axis]:
        """Splits an axis, wherever it occurs."""
        parts = (Axis(first), Axis(axis.size // first))

        def divided(group: Group) -> Group:
            return tuple(part for a in group for part in (parts if a is axis else (a,)))

        self._sample_axes = list(divided(tuple(self._sample_axes)))
        if self.expected_channels is not None:
            self.expected_channels = divided(self.expected_channels)
        for name, view in self.views.items():
            dims = tuple(divided(group) for group in view.dims)
            self.views[name] = dataclasses.replace(view, dims=dims)
        for name, op in self.ops.items():
            if isinstance(op, (Affine, Normalization)):
                self.ops[name] = dataclasses.replace(op, axes=divided(op.axes))
        for name, roles in self._roles.items():
            groups = (roles.channels, roles.height, roles.width)
            self._roles[name] = Roles(*(divided(group) for group in groups))
        return parts


def _can_regroup(sizes: Sequence[int], target: Sequence[int]) -> bool:
    """Whether axes of ``sizes`` make dimensions of ``target`` when they are merged or split, in
    their order; not where a dimension ends within a part of one."""
    left = list(sizes)
    for size in target:
        made = 1
        while made < size and size % made == 0 and left:
            first, missing = left.pop(0), size // made
            if first > missing and first % missing == 0:
                left.insert(0, first // missing)
                first = missing
            made *= first
        if made != size:
            return False
    return True


def _refused_inputs(names: Sequence[str]) -> str:
    """Why a model of any number of inputs but one isn't taken, and what to do."""
    lost = [name for name in names if name.endswith(":0") and "/" in name]
    reason = f"the model has {len(names)} inputs{', ' if names else ''}"
    reason += ", ".join(f"'{name}'" for name in names[:4]) + (" …" if len(names) > 4 else "")
    if not lost or len(lost) != len(names) - 1:
        return f"{reason}; export a network with one input, its constants as initializers"
    return (
        f"{reason}; all but one are constants that Keras' export to ONNX has left out, as it does "
        "with a Normalization layer's: write a SavedModel with model.export('FOLDER') and convert "
        "that with python -m tf2onnx.convert --saved-model FOLDER --output MODEL.onnx"
    )


def _laid_out(values: Array, axes: Group, roles: Roles) -> Array:
    """One value, or one for each entry of ``axes``, as (channels, height, width)."""
    if values.ndim == 0:
        return values.reshape(1, 1, 1)
    sides = [
        side if any(axis in axes for axis in side) else ()
        for side in (roles.channels, roles.height, roles.width)
    ]
    every = [axis for side in sides for axis in side]
    order = [axes.index(axis) for axis in every if axis in axes]
    table = values.reshape([axis.size for axis in axes]).transpose(order)
    table = table.reshape([axis.size if axis in axes else 1 for axis in every])
    table = np.broadcast_to(table, [axis.size for axis in every])
    return table.reshape([size_of(side) for side in sides])
