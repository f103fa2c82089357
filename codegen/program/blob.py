"""A model's weights as devices read them: what its plans train in one blob, the rest in another.

A tensor of which a plan trains anything is *published*: it is part of the weights blob that rounds
replace. The others are *frozen*: constants of the image. Both lie in the order of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import INT32_MAX, WEIGHT_MAX, bias_limit, terms_per_output
from codegen.errors import ModelError
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head, Op
from codegen.program.plans import Plan, trained_tensors
from codegen.program.row_pairs import Order, pack_rows, stored_bytes, unpack_rows

FACTORY_WEIGHTS, FROZEN_WEIGHTS = "tf_factory_weights", "tf_frozen_weights"
"""Constants of the image: the published tensors as they were built in, and the others."""

ALIGNMENT = 4
Q88_LIMIT = WEIGHT_MAX * 256

Kind: TypeAlias = Literal["weight", "bias"]
DType: TypeAlias = Literal["int8", "int16", "int32"]

_DTYPES: dict[int, DType] = {1: "int8", 2: "int16", 4: "int32"}


@dataclass(frozen=True, eq=False)
class Parameter:
    """One tensor of weights or biases: its values, and what one integer step means.

    ``step`` has the real value of one step, one entry or one per output channel.
    ``limit`` is the largest magnitude that keeps every accumulator on the device within
    its width.
    """

    name: str
    layer: str
    kind: Kind
    values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32]
    limit: int
    step: tuple[float, ...]
    order: Order

    @property
    def dtype(self) -> DType:
        """Name of the values' type."""
        return _DTYPES[self.values.dtype.itemsize]

    @property
    def size(self) -> int:
        """Bytes without the padding that follows; of row pairs with what fills them up."""
        return stored_bytes(self.order, self.values.shape, self.values.dtype.itemsize)

    def stored(self) -> bytes:
        """The tensor as it lies in memory, little endian."""
        if self.order == "row-pairs":
            matrix = self.values.reshape(self.values.shape[0], -1)
            return pack_rows(matrix.astype(np.int8)).tobytes()
        return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()

    def read(self, data: bytes, offset: int) -> NDArray[np.int64]:
        """The tensor's values at ``offset`` of ``data``, in its shape."""
        shape = self.values.shape
        if self.order == "row-pairs":
            packed = np.frombuffer(data, np.int8, self.size, offset)
            rows = unpack_rows(packed, shape[0], math.prod(shape[1:]))
            return rows.reshape(shape).astype(np.int64)
        dtype = self.values.dtype.newbyteorder("<")
        flat = np.frombuffer(data, dtype, self.values.size, offset)
        return flat.reshape(shape).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Blob:
    """Tensors laid end to end, each at a multiple of ``ALIGNMENT``; padding is zero."""

    tensors: tuple[Parameter, ...]

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Tensor name → byte at which it starts."""
        offsets, end = {}, 0
        for tensor in self.tensors:
            offsets[tensor.name] = end
            end += _aligned(tensor.size)
        return offsets

    @property
    def size(self) -> int:
        """Bytes with padding."""
        return sum(_aligned(tensor.size) for tensor in self.tensors)

    def pack(self) -> bytes:
        """The bytes themselves, little endian."""
        data = bytearray(self.size)
        for tensor in self.tensors:
            offset = self.offsets[tensor.name]
            data[offset : offset + tensor.size] = tensor.stored()
        return bytes(data)

    def unpack(self, data: bytes) -> dict[str, NDArray[np.int64]]:
        """Tensor name → values in ``data`` as int64, in the tensors' shapes."""
        return {
            tensor.name: tensor.read(data, self.offsets[tensor.name]) for tensor in self.tensors
        }


@dataclass(frozen=True, eq=False)
class Weights:
    """All tensors of a model: those that rounds replace, and those that stay as they were built."""

    published: Blob
    frozen: Blob


def published_by(graph: Graph, plans: Iterable[Plan]) -> Weights:
    """The weights of ``graph`` for a bundle that ``plans`` were asked for: their union.

    Without a loss nothing is trained, and all of it may be replaced.
    """
    if graph.ending.loss == "none":
        return all_published(graph)
    trained = {name for plan in plans for name in trained_tensors(graph, plan)}
    return split(graph, trained)


def all_published(graph: Graph) -> Weights:
    """The weights of ``graph`` with every tensor in the blob."""
    return split(graph, [tensor.name for tensor in parameters(graph)])


def split(graph: Graph, published: Collection[str]) -> Weights:
    """The weights of ``graph`` with the tensors of these names in the blob."""
    tensors = parameters(graph)
    return Weights(
        Blob(tuple(tensor for tensor in tensors if tensor.name in published)),
        Blob(tuple(tensor for tensor in tensors if tensor.name not in published)),
    )


def parameters(graph: Graph) -> list[Parameter]:
    """Tensors of ``graph`` in the order of its layers: weight and bias of each, then the head's.

    Raises ModelError for a value that the device can't hold: nothing is clamped here.
    """
    tensors: list[Parameter] = []

    def add(
        layer: str,
        kind: Kind,
        values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32],
        limit: int,
        step: tuple[float, ...],
        order: Order = "plain",
    ) -> None:
        name = f"{layer}.{kind}"
        _check_limit(layer, kind, values, limit)
        tensors.append(Parameter(name, layer, kind, values, limit, step, order))

    for op in graph.ops:
        if isinstance(op, (Conv, DepthwiseConv)):
            input_scale = graph.tensors[op.input].scale
            order: Order = "row-pairs" if isinstance(op, Conv) else "plain"
            weight_step = tuple(op.weight_scale.tolist())
            add(op.name, "weight", op.weight, WEIGHT_MAX, weight_step, order)
            bias_step = tuple((input_scale * op.weight_scale).tolist())
            limit = bias_limit(op.name, terms_per_output(op))
            add(op.name, "bias", op.bias, limit, bias_step)
        elif isinstance(op, Head):
            step = op.weight_scale / 256
            unit = graph.tensors[op.input].scale * step
            add(op.name, "weight", op.weight, Q88_LIMIT, (step,))
            add(op.name, "bias", op.bias, INT32_MAX, (unit,))
    return tensors


def _check_limit(
    layer: str,
    kind: Kind,
    values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32],
    limit: int,
) -> None:
    beyond = np.argwhere(np.abs(values.astype(np.int64)) > limit)
    if not len(beyond):
        return
    channels_last = kind == "weight" and values.ndim == 3  # depthwise: [Kh, Kw, C]
    channel = int(beyond[0][-1 if channels_last else 0])
    raise ModelError(
        f"layer {layer}: a {kind} of channel {channel} is {int(values[tuple(beyond[0])])} steps, "
        f"beyond ±{limit}, where its sums could overflow; quantize the channel with a larger scale"
    )


def values_of(graph: Graph) -> dict[str, NDArray[np.int64]]:
    """Tensor name → values of ``graph`` as int64, as devices start from them."""
    return {tensor.name: tensor.values.astype(np.int64) for tensor in parameters(graph)}


def with_values(graph: Graph, values: Mapping[str, NDArray[np.int64]]) -> Graph:
    """``graph`` with other weights and biases: tensor name → values, which fit their types."""

    def changed(op: Op) -> Op:
        weight, bias = (values.get(f"{op.name}.{kind}") for kind in ("weight", "bias"))
        match op:
            case Conv() | DepthwiseConv() if weight is not None:
                op = replace(op, weight=weight.astype(np.int8))
            case Head() if weight is not None:
                op = replace(op, weight=weight.astype(np.int16))
        if bias is not None and isinstance(op, (Conv, DepthwiseConv, Head)):
            op = replace(op, bias=bias.astype(np.int32))
        return op

    return replace(graph, ops=tuple(changed(op) for op in graph.ops))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
