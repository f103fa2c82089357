"""Cutting a quantized graph at a tensor: the operations after it as a graph of their own.

What lies before the first trained layer is frozen: its output for a sample never changes. A
proxy study, or a test, computes it once per sample and trains the rest on it, bit for bit as the
whole graph would be trained.
"""

from __future__ import annotations

from codegen.errors import ModelError
from codegen.graph.ir import Ending, Graph, inputs_of
from codegen.program.plans import Plan


def cut_graph(graph: Graph, tensor: str) -> Graph:
    """The operations of ``graph`` after ``tensor``, which becomes the input.

    Layers keep their names, so that plans of the whole graph resolve on the cut one as long as
    they train nothing before ``tensor``. The graph's own input gives the graph back.

    Raises ModelError for a tensor that isn't there, and for one that isn't all that the rest
    depends on (a branch passes it by), naming the nearest cut before it.
    """
    if tensor not in graph.tensors:
        raise ModelError(f"graph {graph.name} has no tensor {tensor!r} to be cut at")
    cuts = cut_tensors(graph)
    if tensor not in cuts:
        made = _outputs(graph)
        before = [cut for cut in cuts if cut == graph.input or made.index(cut) < made.index(tensor)]
        raise ModelError(
            f"graph {graph.name} can't be cut at {tensor!r}: another branch passes it by; "
            f"cut at {before[-1]!r}"
        )
    if tensor == graph.input:
        return graph
    made = _outputs(graph)
    first = made.index(tensor) + 1
    names = {tensor, *made[first:]}
    tensors = {name: entry for name, entry in graph.tensors.items() if name in names}
    return Graph(f"{graph.name} after {tensor}", tensor, tensors, graph.ops[first:])


def cut_tensors(graph: Graph) -> list[str]:
    """Tensors that everything after them depends on alone, in order, the input first."""
    last_use: dict[str, int] = {}
    for index, op in enumerate(graph.ops):
        for name in inputs_of(op):
            last_use[name] = index
    cuts = [graph.input]
    open_until = last_use[graph.input]
    for index, output in enumerate(_outputs(graph)):
        if open_until <= index:
            cuts.append(output)
        open_until = max(open_until, last_use[output])
    return cuts


def frozen_cut(graph: Graph, plan: Plan) -> str:
    """The last tensor at which ``graph`` can be cut without losing a layer that ``plan`` trains."""
    trained = {*plan.biases, *(item.layer for item in plan.weights)}
    first = next((i for i, op in enumerate(graph.ops) if op.name in trained), len(graph.ops) - 1)
    frozen = {graph.input, *_outputs(graph)[:first]}
    return [tensor for tensor in cut_tensors(graph) if tensor in frozen][-1]


def _outputs(graph: Graph) -> list[str]:
    """What each operation makes, in order; the outputs of the ending are none."""
    return [op.output for op in graph.ops if not isinstance(op, Ending)]
