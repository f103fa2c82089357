"""What an update plan can be made of: bias depths, and ratios of each layer's channels.

Paper: Lin et al., On-Device Training Under 256KB Memory, arXiv 2206.15472, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from codegen.graph.ir import Conv, DepthwiseConv, Graph
from codegen.program.plans import LastLayers, PlanSpec, State, WeightSpec

RATIOS = (0.125, 0.25, 0.5, 1.0)
ChannelChoice = Literal["norm", "contribution"]

ChannelOrder = Mapping[str, tuple[int, ...]]
"""Layer → its channels (last axis of its weight), those to be trained first come first."""


@dataclass(frozen=True)
class Selection:
    """A plan as the search sees it: biases of the last ``depth`` convolutions, and the number of
    channels trained of each layer's weight, in execution order. The head is always trained."""

    depth: int = 0
    channels: tuple[tuple[str, int], ...] = ()


def channel_counts(op: Conv | DepthwiseConv) -> tuple[int, ...]:
    """Channels trained at each of ``RATIOS``, at least one; equal ones only once."""
    channels = op.weight.shape[-1]
    return tuple(sorted({max(1, int(channels * ratio)) for ratio in RATIOS}))


def order_by_norm(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Channels by the L2 norm of their integer weights, largest first, ties by index."""
    order = {}
    for op in graph.convolutions:
        squares = op.weight.astype(np.int64) ** 2
        order[op.name] = order_by(squares.sum(axis=tuple(range(squares.ndim - 1))))
    return order


def order_by(values: NDArray[np.int64] | NDArray[np.float64]) -> tuple[int, ...]:
    """Indices of ``values`` from the largest down, ties by index."""
    return tuple(int(index) for index in np.argsort(-values, kind="stable"))


CHOSEN_BY = {"norm": "weight-norm", "contribution": "fisher"}
"""What a plan's ``chosen_by`` says."""


def plan_spec(
    selection: Selection,
    order: ChannelOrder,
    *,
    name: str = "plan",
    state: State = "q8.8",
    choice: ChannelChoice = "norm",
) -> PlanSpec:
    """The plan that ``selection`` stands for, with the first channels of each layer's ``order``."""
    weights = []
    for layer, count in selection.channels:
        if count == len(order[layer]):
            weights.append(WeightSpec(layer=layer))
        else:
            channels: list[int | tuple[int, int]] = [*sorted(order[layer][:count])]
            weights.append(WeightSpec(layer=layer, channels=channels, chosen_by=CHOSEN_BY[choice]))
    biases = LastLayers(last=selection.depth)
    return PlanSpec(name=name, biases=biases, weights=weights, head=True, state=state)
