"""Random pools for the kernel tests: the operation, its tensors, and the C structure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codegen.graph.floats import window_output_shape
from codegen.graph.ir import Graph, Padding, Tensor
from codegen.operators.average_pool import AveragePool
from codegen.operators.max_pool import MaxPool
from codegen.operators.windows import overlap_bits

Fields = list[tuple[str, int]]


@dataclass(frozen=True)
class PoolCase:
    """A pool between tensors ``x`` and ``y``."""

    op: MaxPool | AveragePool
    graph: Graph

    @property
    def source(self) -> Tensor:
        return self.graph.tensors["x"]

    @property
    def output(self) -> Tensor:
        return self.graph.tensors["y"]

    def window_fields(self) -> Fields:
        """tf_pool_window."""
        op, source, output = self.op, self.source.shape, self.output.shape
        numbers = [*source, *output[:2], *op.window, *op.stride, op.padding.top, op.padding.left]
        return [*(("H", number) for number in numbers), ("B", overlap_bits(op))]

    def codes(self, seed: int) -> np.ndarray:
        """Codes of the input, of few values, so that the largest often occurs twice."""
        draw = np.random.default_rng(seed)
        low, high = np.sort(draw.integers(-128, 128, 2))
        return draw.integers(low, high + 1, self.source.shape).astype(np.int8)


def pool_case(seed: int, largest: bool) -> PoolCase:
    """A pool of any window, stride and padding; an average in its own scale or the input's.

    Zeros that an average counts may be more than its window, as a Pad's by itself are.
    """
    draw = np.random.default_rng([seed, 7])
    height, width = draw.integers(1, 10, 2).tolist()
    channels = int(draw.integers(1, 10))
    window = int(draw.integers(1, min(height, 5) + 1)), int(draw.integers(1, min(width, 5) + 1))
    stride = int(draw.integers(1, 4)), int(draw.integers(1, 4))
    wide = not largest and draw.random() < 0.3
    most = [length + 2 if wide else length - 1 for length in window]
    pad = Padding(*(int(draw.integers(0, most[i % 2] + 1)) for i in range(4)))
    size = window_output_shape(window, stride, pad, (height, width))
    x = Tensor("x", (height, width, channels), 0.02, int(draw.integers(-128, 128)))
    own = not largest and draw.random() < 0.6
    scale = float(draw.uniform(0.004, 0.05)) if own else x.scale
    zero = int(draw.integers(-128, 128)) if own else x.zero_point
    op: MaxPool | AveragePool
    if largest:
        op = MaxPool("pool", "x", "y", window, stride, pad)
    else:
        counted = pad if wide or draw.random() < 0.5 else Padding()
        op = AveragePool("pool", "x", "y", window, stride, pad, counted)
    tensors = {"x": x, "y": Tensor("y", (*size, channels), scale, zero)}
    return PoolCase(op, Graph("case", "x", tensors, (op,)))
