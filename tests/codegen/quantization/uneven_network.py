"""A small network whose channels have very different ranges, for tests of the quantizer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codegen.graph.floats import Clamp, FloatConv, FloatGraph, FloatHead, FloatOp
from codegen.graph.ir import Padding
from codegen.operators.global_average_pool import GlobalAveragePool

RELU, RELU6 = Clamp(low=0.0), Clamp(0.0, 6.0)
AROUND = Padding(1, 1, 1, 1)


def network(
    seed: int = 0, spread: float = 4.0, clamp: Clamp = RELU, channels: int = 12
) -> FloatGraph:
    """Expand, depthwise, project, expand, pool, head; channels differ by up to 2^±spread.

    The factors cancel between layers, as training with batch normalization leaves them.
    """
    rng = np.random.default_rng(seed)

    def factors() -> NDArray[np.float64]:
        return np.asarray(2.0 ** rng.uniform(-spread, spread, channels))

    def weight(*shape: int) -> NDArray[np.float64]:
        return rng.normal(0, 1.0 / np.sqrt(np.prod(shape[1:])), shape)

    a, b, c, d = factors(), factors(), factors(), factors()
    rows = (slice(None), None, None, None)
    ops: tuple[FloatOp, ...] = (
        FloatConv(
            "expand", "x", "expand", weight(channels, 3, 3, 3) * a[rows],
            rng.normal(0.3, 0.3, channels) * a, padding=AROUND, clamp=clamp,
        ),
        FloatConv(
            "dw", "expand", "dw", weight(channels, 1, 3, 3) * (b / a)[rows],
            rng.normal(0.3, 0.3, channels) * b, groups=channels, padding=AROUND, clamp=clamp,
        ),
        FloatConv(
            "project", "dw", "project",
            weight(channels, channels, 1, 1) * c[rows] / b[:, None, None],
            rng.normal(0, 0.3, channels) * c,
        ),
        FloatConv(
            "last", "project", "last",
            weight(channels, channels, 1, 1) * d[rows] / c[:, None, None],
            rng.normal(0.3, 0.3, channels) * d, clamp=clamp,
        ),
        GlobalAveragePool("pool", "last", "pool"),
        FloatHead("head", "pool", "logits", rng.normal(size=(5, channels)) / d, np.zeros(5)),
    )  # fmt: skip
    shapes = {"x": (3, 8, 8), "pool": (channels, 1, 1)}
    shapes |= dict.fromkeys(("expand", "dw", "project", "last"), (channels, 8, 8))
    return FloatGraph("network", "x", shapes, ops)


def samples(count: int = 48, seed: int = 9) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def conv(graph: FloatGraph, name: str) -> FloatConv:
    op = next(op for op in graph.ops if op.name == name)
    assert isinstance(op, FloatConv)
    return op
