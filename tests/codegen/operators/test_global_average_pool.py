"""Means over whole pictures."""

import pytest

from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.global_average_pool import GlobalAveragePool, pooling_arithmetic


def test_a_mean_over_too_many_pixels_is_refused_by_name() -> None:
    op = GlobalAveragePool("pool", "x", "y")
    graph = Graph("huge", "x", {"x": Tensor("x", (256, 256, 1), 1.0, 0)}, (op,))
    with pytest.raises(ModelError, match="pool: 65536 pixels"):
        pooling_arithmetic(graph, op)
