"""What a maximum over channels can't be told to the kernel."""

from __future__ import annotations

import pytest

from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.channel_max import CHANNEL_MAX, ChannelMax


def test_more_pixels_than_the_kernel_counts_are_refused_by_name() -> None:
    op = ChannelMax("most", "x", "y")
    for width, fits in ((255, True), (257, False)):
        tensors = {
            "x": Tensor("x", (257, width, 2), 0.1, 0), "y": Tensor("y", (257, width, 1), 0.1, 0)
        }  # fmt: skip
        graph = Graph("case", "x", tensors, (op,))
        if fits:
            assert CHANNEL_MAX.fields(graph, op, {})[0] == "65535, 2, 1, 65535, 1,"
            continue
        with pytest.raises(ModelError, match=r"layer most: 66049 pixels .*; pool before it"):
            CHANNEL_MAX.fields(graph, op, {})
