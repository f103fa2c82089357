"""The weights blob: all tensors of a model, in the layout in which devices read them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.layers import bias_limit
from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head

ALIGNMENT = 4
Q88_LIMIT = 127 * 256

Kind: TypeAlias = Literal["weight", "bias"]
DType: TypeAlias = Literal["int8", "int16", "int32"]
Order: TypeAlias = Literal["plain", "row-pairs"]
"""How values lie in memory: one after the other, or ``pack_rows``."""

_DTYPES: dict[int, DType] = {1: "int8", 2: "int16", 4: "int32"}


def packed_bytes(rows: int, length: int) -> int:
    """Size of ``rows`` int8 rows of ``length`` values in row pairs."""
    return -(-rows // 2) * 2 * -(-length // 4) * 4


def pack_rows(matrix: NDArray[np.int8]) -> NDArray[np.int8]:
    """A matrix (rows, length) in row pairs, the order of kernels.h, shape (bytes,).

    Two rows lie interleaved byte by byte, so that a word has two values of each; lengths are
    filled up with zeros to a multiple of 4, the number of rows to a multiple of 2.
    """
    rows, length = matrix.shape
    padded = np.zeros((-(-rows // 2) * 2, -(-length // 4) * 4), np.int8)
    padded[:rows, :length] = matrix
    pairs = padded.reshape(-1, 2, padded.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(pairs).ravel()


def unpack_rows(packed: NDArray[np.int8], rows: int, length: int) -> NDArray[np.int8]:
    """The inverse of ``pack_rows``."""
    pairs = packed.reshape(-1, -(-length // 4) * 4, 2).transpose(0, 2, 1)
    return np.ascontiguousarray(pairs.reshape(-1, pairs.shape[2])[:rows, :length])


@dataclass(frozen=True, eq=False)
class BlobTensor:
    """One tensor of the blob: its place, its values, and what one integer step means.

    ``step`` has the real value of one step, one entry or one per output channel.
    ``limit`` is the largest magnitude that keeps every accumulator on the device within
    its width.
    """

    name: str
    layer: str
    kind: Kind
    values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32]
    offset: int
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
        if self.order == "row-pairs":
            return packed_bytes(self.values.shape[0], math.prod(self.values.shape[1:]))
        return int(self.values.nbytes)

    def stored(self) -> bytes:
        """The tensor as it lies in the blob, little endian."""
        if self.order == "row-pairs":
            matrix = self.values.reshape(self.values.shape[0], -1)
            return pack_rows(matrix.astype(np.int8)).tobytes()
        return self.values.astype(self.values.dtype.newbyteorder("<")).tobytes()

    def read(self, blob: bytes) -> NDArray[np.int64]:
        """The tensor's values in ``blob``, in its shape."""
        shape = self.values.shape
        if self.order == "row-pairs":
            packed = np.frombuffer(blob, np.int8, self.size, self.offset)
            rows = unpack_rows(packed, shape[0], math.prod(shape[1:]))
            return rows.reshape(shape).astype(np.int64)
        dtype = self.values.dtype.newbyteorder("<")
        flat = np.frombuffer(blob, dtype, self.values.size, self.offset)
        return flat.reshape(shape).astype(np.int64)


def layout(graph: Graph) -> list[BlobTensor]:
    """Tensors of ``graph`` in blob order: weight and bias of each layer, then the head's."""
    tensors: list[BlobTensor] = []
    offset = 0

    def place(
        layer: str,
        kind: Kind,
        values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32],
        limit: int,
        step: tuple[float, ...],
        order: Order = "plain",
    ) -> None:
        nonlocal offset
        name = f"{layer}.{kind}"
        tensors.append(BlobTensor(name, layer, kind, values, offset, limit, step, order))
        offset += -(-tensors[-1].size // ALIGNMENT) * ALIGNMENT

    for op in graph.ops:
        if isinstance(op, (Conv, DepthwiseConv)):
            input_scale = graph.tensors[op.input].scale
            order: Order = "row-pairs" if isinstance(op, Conv) else "plain"
            place(op.name, "weight", op.weight, 127, tuple(op.weight_scale.tolist()), order)
            bias_step = tuple((input_scale * op.weight_scale).tolist())
            limit = bias_limit(graph, op)
            bias = np.clip(op.bias, -limit, limit).astype(np.int32)
            place(op.name, "bias", bias, limit, bias_step)
        elif isinstance(op, Head):
            weight_step = op.weight_scale / 256
            unit = graph.tensors[op.input].scale * weight_step
            place(op.name, "weight", op.weight, Q88_LIMIT, (weight_step,))
            place(op.name, "bias", op.bias, 2**31 - 1, (unit,))
    return tensors


def blob_bytes(graph: Graph) -> int:
    """Size of the blob with padding."""
    last = layout(graph)[-1]
    return -(-(last.offset + last.size) // ALIGNMENT) * ALIGNMENT


def pack(graph: Graph) -> bytes:
    """The blob itself, little endian, padding zero."""
    blob = bytearray(blob_bytes(graph))
    for tensor in layout(graph):
        data = tensor.stored()
        blob[tensor.offset : tensor.offset + len(data)] = data
    return bytes(blob)


def unpack(graph: Graph, blob: bytes) -> dict[str, NDArray[np.int64]]:
    """Tensor name → values as int64, in the tensors' shapes."""
    return {tensor.name: tensor.read(blob) for tensor in layout(graph)}
