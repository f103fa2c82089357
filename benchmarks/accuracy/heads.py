"""Heads drawn anew: a network meets classes that it wasn't made for."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from codegen.graph.floats import FloatGraph


def with_fresh_head(graph: FloatGraph, seed: int, classes: int | None = None) -> FloatGraph:
    """``graph`` with a head drawn uniformly within 1/sqrt(inputs), as PyTorch does.

    ``classes`` is the number of outputs, as many as there were where left out.
    """
    outputs, inputs = graph.head.weight.shape
    random = torch.Generator().manual_seed(seed)
    drawn = torch.rand((classes or outputs, inputs + 1), generator=random, dtype=torch.float64)
    values = (2 * drawn - 1).numpy() / math.sqrt(inputs)
    fresh = replace(graph.head, weight=values[:, :-1], bias=values[:, -1])
    return replace(graph, ops=(*graph.ops[:-1], fresh))
