"""The order in which the operations of a graph run: one whose activations need little memory.

Networks in a line have one order only. Where branches meet again, running the branch with the
larger leftovers last keeps fewer bytes waiting. Layer numbers (a plan's last k) stay those of the
graph.
"""

from __future__ import annotations

from collections.abc import Sequence

from codegen.graph.ir import Ending, Graph, Op, inputs_of


def peak_bytes(graph: Graph, order: Sequence[Op]) -> int:
    """Most bytes of whole activations that are live at one operation of the forward pass."""
    last_reader = {name: index for index, op in enumerate(order) for name in inputs_of(op)}
    live = peak = 0
    for index, op in enumerate(order):
        if not isinstance(op, Ending):
            live += graph.tensors[op.output].size
        peak = max(peak, live)
        for name in set(inputs_of(op)) - {graph.input}:
            if last_reader[name] == index:
                live -= graph.tensors[name].size
    return peak


def scheduled(graph: Graph) -> tuple[Op, ...]:
    """The operations of ``graph`` in an order that needs no more memory than the graph's own.

    Operations move to the front, past others that they don't depend on, as long as that lowers
    the peak.
    """
    order = list(graph.ops)
    best = peak_bytes(graph, order)
    improved = True
    while improved:
        improved = False
        for start in range(1, len(order)):
            for target in range(start - 1, _earliest(order, start) - 1, -1):
                trial = [*order[:target], order[start], *order[target:start], *order[start + 1 :]]
                cost = peak_bytes(graph, trial)
                if cost < best:
                    order, best, improved = trial, cost, True
                    break
    return tuple(order)


def _earliest(order: Sequence[Op], index: int) -> int:
    needed = set(inputs_of(order[index]))
    for before in range(index - 1, -1, -1):
        op = order[before]
        if not isinstance(op, Ending) and op.output in needed:
            return before + 1
    return 0
