"""The order of operations: always one that the data allow, never one that needs more memory."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.graph.ir import Conv, Graph, Head, Op, Tensor, inputs_of
from codegen.operators.add import Add
from codegen.program.scheduling import peak_bytes, scheduled
from tests.codegen.random_graphs import random_graph


def _conv(name: str, source: str, channels: int) -> Conv:
    weight = np.ones((channels, 1, 1, 1), np.int8)
    scale, bias = np.ones(channels), np.zeros(channels, np.int32)
    return Conv(name, source, f"{name}.y", weight, scale, bias)


def _graph(ops: list[Op], channels: dict[str, int]) -> Graph:
    tensors = {name: Tensor(name, (4, 4, count), 1.0, 0) for name, count in channels.items()}
    last = ops[-1]
    assert isinstance(last, (Add, Conv))
    head = Head("head", last.output, np.zeros((2, 1), np.int16), 1.0, np.zeros(2, np.int32))
    return Graph("g", "x", tensors, (*ops, head))


def test_the_branch_that_shrinks_runs_before_the_one_that_stays_large() -> None:
    ops: list[Op] = [
        _conv("stem", "x", 2),
        _conv("wide", "stem.y", 64),
        _conv("large", "stem.y", 40),
        _conv("narrow", "wide.y", 40),
        Add("join", ("large.y", "narrow.y"), "join.y"),
    ]
    sizes = {"x": 1, "stem.y": 2, "wide.y": 64, "large.y": 40, "narrow.y": 40, "join.y": 40}
    graph = _graph(ops, sizes)
    order = scheduled(graph)
    names = [op.name for op in order]
    assert names.index("narrow") < names.index("large")
    assert peak_bytes(graph, order) == 16 * (40 + 40 + 40)
    assert peak_bytes(graph, graph.ops) == 16 * (2 + 64 + 40 + 40) - 16 * 2


@st.composite
def branching_graphs(draw: st.DrawFn) -> Graph:
    sizes = {"x": 1}
    ops: list[Op] = []
    for index in range(draw(st.integers(2, 12))):
        name = f"op{index}"
        sources = list(sizes)
        same = [a for a in sources if sum(sizes[b] == sizes[a] for b in sources) > 1]
        if same and draw(st.booleans()):
            first = draw(st.sampled_from(same))
            others = [b for b in sources if b != first and sizes[b] == sizes[first]]
            ops.append(Add(name, (first, draw(st.sampled_from(others))), f"{name}.y"))
            sizes[f"{name}.y"] = sizes[first]
        else:
            channels = draw(st.integers(1, 9))
            ops.append(_conv(name, draw(st.sampled_from(sources)), channels))
            sizes[f"{name}.y"] = channels
    return _graph(ops, sizes)


@given(branching_graphs())
def test_every_operation_runs_once_after_what_it_reads(graph: Graph) -> None:
    order = scheduled(graph)
    assert sorted(op.name for op in order) == sorted(op.name for op in graph.ops)
    known = {graph.input}
    for op in order:
        assert set(inputs_of(op)) <= known
        if not isinstance(op, Head):
            known.add(op.output)
    assert peak_bytes(graph, order) <= peak_bytes(graph, graph.ops)


def test_a_network_in_a_line_keeps_its_order() -> None:
    for seed in range(5):
        graph, _ = random_graph(seed)
        assert [op.name for op in scheduled(graph)] == [op.name for op in graph.ops]
