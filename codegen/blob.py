"""The weights blob: all tensors of a model, in the layout in which devices read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from codegen.ir import Conv, DepthwiseConv, Graph, Head
from codegen.layer_arithmetic import bias_limit

ALIGNMENT = 4
Q88_LIMIT = 127 * 256


@dataclass(frozen=True, eq=False)
class BlobTensor:
    """One tensor of the blob: its place, its values, and what one integer step means.

    ``step`` has the real value of one step, one entry or one per output channel.
    ``limit`` is the largest magnitude that keeps every accumulator on the device within
    its width.
    """

    name: str
    layer: str
    kind: str
    values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32]
    offset: int
    limit: int
    step: tuple[float, ...]

    @property
    def size(self) -> int:
        """Bytes without padding."""
        return int(self.values.nbytes)


def layout(graph: Graph) -> list[BlobTensor]:
    """Tensors of ``graph`` in blob order: weight and bias of each layer, then the head's."""
    tensors: list[BlobTensor] = []
    offset = 0

    def place(
        layer: str,
        kind: str,
        values: NDArray[np.int8] | NDArray[np.int16] | NDArray[np.int32],
        limit: int,
        step: tuple[float, ...],
    ) -> None:
        nonlocal offset
        tensors.append(BlobTensor(f"{layer}.{kind}", layer, kind, values, offset, limit, step))
        offset += -(-values.nbytes // ALIGNMENT) * ALIGNMENT

    for op in graph.ops:
        if isinstance(op, (Conv, DepthwiseConv)):
            input_scale = graph.tensors[op.input].scale
            place(op.name, "weight", op.weight, 127, tuple(op.weight_scale.tolist()))
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
        data = tensor.values.astype(tensor.values.dtype.newbyteorder("<")).tobytes()
        blob[tensor.offset : tensor.offset + len(data)] = data
    return bytes(blob)


def unpack(graph: Graph, blob: bytes) -> dict[str, NDArray[np.int64]]:
    """Tensor name → values as int64, in the tensors' shapes."""
    return {
        tensor.name: np.frombuffer(
            blob, tensor.values.dtype.newbyteorder("<"), tensor.values.size, tensor.offset
        )
        .reshape(tensor.values.shape)
        .astype(np.int64)
        for tensor in layout(graph)
    }
