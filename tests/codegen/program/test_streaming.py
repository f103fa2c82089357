"""Chains over row rings: every row that a stage reads is there, and no row is overwritten early."""

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.graph.ir import Conv, DepthwiseConv, Graph, Head, Padding, Tensor
from codegen.program.streaming import (
    Stage,
    chain_lead,
    convolution_lead,
    ring_rows,
    schedule,
    window_of,
)


def _graph(tensors: dict[str, Tensor], ops: Sequence[Stage]) -> Graph:
    head = Head("head", ops[-1].output, np.zeros((2, 1), np.int16), 1.0, np.zeros(2, np.int32))
    return Graph("chain", "t0", tensors, (*ops, head))


@st.composite
def chains(draw: st.DrawFn) -> tuple[Graph, list[Conv | DepthwiseConv], int]:
    height, channels = draw(st.integers(1, 24)), draw(st.integers(1, 3))
    tensors = {"t0": Tensor("t0", (height, 2, channels), 1.0, 0)}
    ops: list[Conv | DepthwiseConv] = []
    for index in range(draw(st.integers(1, 4))):
        kernel, stride = draw(st.integers(1, 5)), draw(st.integers(1, 3))
        top, bottom = draw(st.integers(0, kernel - 1)), draw(st.integers(0, kernel - 1))
        rows = (height + top + bottom - kernel) // stride + 1
        if height + top + bottom < kernel:
            break
        outputs = draw(st.integers(1, 4))
        name = f"t{index + 1}"
        weight = np.ones((outputs, kernel, 1, channels), np.int8)
        ops.append(
            Conv(
                f"op{index}",
                f"t{index}",
                name,
                weight,
                np.ones(outputs),
                np.zeros(outputs, np.int32),
                (stride, 1),
                Padding(top, 0, bottom, 0),
            )
        )
        tensors[name] = Tensor(name, (rows, 2, outputs), 1.0, 0)
        height, channels = rows, outputs
    if not ops:
        weight = np.ones((1, 1, 1, channels), np.int8)
        ops.append(Conv("op0", "t0", "t1", weight, np.ones(1), np.zeros(1, np.int32)))
        tensors["t1"] = Tensor("t1", (height, 2, 1), 1.0, 0)
    return _graph(tensors, ops), ops, draw(st.integers(1, 8))


@given(chains())
def test_every_row_that_a_stage_reads_is_in_the_ring(
    chain: tuple[Graph, list[Conv | DepthwiseConv], int],
) -> None:
    graph, ops, band = chain
    rows = schedule(graph, ops, band)
    rings = ring_rows(graph, ops, rows)
    held: list[dict[int, int]] = [{} for _ in rings]  # place in the ring → row
    made = [0] * len(ops)
    for item in rows:
        op = ops[item.stage]
        window = window_of(graph, op)
        if item.stage > 0:
            for row in range(window.low(item.first), window.high(item.end)):
                assert held[item.stage - 1].get(row % rings[item.stage - 1]) == row
        assert item.first == made[item.stage]
        made[item.stage] = item.end
        if item.stage < len(rings):
            for row in range(item.first, item.end):
                held[item.stage][row % rings[item.stage]] = row
    assert made[-1] == graph.tensors[ops[-1].output].shape[0]


@given(chains())
def test_output_written_at_the_lead_never_hits_an_input_row_that_is_still_to_be_read(
    chain: tuple[Graph, list[Conv | DepthwiseConv], int],
) -> None:
    graph, ops, band = chain
    rows = schedule(graph, ops, band)
    lead = chain_lead(graph, ops, rows, "t0") if len(ops) > 1 else convolution_lead(graph, ops[0])
    source_row = graph.tensors["t0"].shape[1] * graph.tensors["t0"].shape[2]
    output = graph.tensors[ops[-1].output]
    output_row = output.shape[1] * output.shape[2]
    for number, item in enumerate(rows):
        if item.stage != len(ops) - 1:
            continue
        written = item.end * output_row - lead  # relative to the input's start
        for later in rows[number + 1 :]:
            if later.stage == 0:
                assert window_of(graph, ops[0]).low(later.first) * source_row >= written
