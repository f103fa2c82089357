"""Plans as people make them after a look at contributions: regular ones, which noise leads less.

The search takes what promises most layer by layer, and so takes layers whose gain is luck. These
plans choose by what layers have in common, or leave out what promises least.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from codegen.graph.ir import Conv, DepthwiseConv, Graph
from codegen.plan_search.candidates import Selection, channel_counts
from codegen.plan_search.contributions import Contributions

Fits = Callable[[Selection], bool]


def kinds_of(graph: Graph) -> dict[str, str]:
    """Convolution → its kind: what it is, and whether a depthwise one follows.

    In networks of inverted residuals the ``pointwise-first`` widen a block for its depthwise
    convolution, and the ``pointwise`` narrow it again.
    """
    layers = graph.convolutions
    kinds = {}
    for op, then in zip(layers, [*layers[1:], None], strict=True):
        kind = "depthwise" if isinstance(op, DepthwiseConv) else "full"
        if isinstance(op, Conv) and op.weight.shape[1:3] == (1, 1):
            kind = "pointwise"
        leads = isinstance(then, DepthwiseConv) and not isinstance(op, DepthwiseConv)
        kinds[op.name] = f"{kind}-first" if leads else kind
    return kinds


def late_of_a_kind(graph: Graph, contributions: Contributions, fits: Fits) -> dict[str, Selection]:
    """The last layers of the kind whose layers promise most in the mean, as many as fit.

    From the last one on, each has the most channels that still fit, and the biases down to the
    first. By name, one plan with all of them and one with half as many layers.
    """
    kinds = kinds_of(graph)
    gains: dict[str, list[float]] = {}
    for layer, options in contributions.weights.items():
        gains.setdefault(kinds[layer], []).append(max([0.0, *options.values()]))
    best = max(gains, key=lambda kind: sum(gains[kind]) / len(gains[kind]), default="")
    analysed = [op for op in graph.convolutions if op.name in contributions.weights]
    depths = {op.name: depth for depth, op in enumerate(reversed(graph.convolutions), start=1)}
    found: list[Selection] = []
    chosen = Selection()
    for op in reversed([op for op in analysed if kinds[op.name] == best]):
        depth = depths[op.name]
        if depth >= len(contributions.biases):
            break
        for count in reversed(channel_counts(op)):
            more = Selection(depth, ((op.name, count), *chosen.channels))
            if fits(more):
                chosen = more
                found.append(more)
                break
        else:
            break
    if not found:
        return {}
    half = found[(len(found) - 1) // 2]
    return {f"last-{len(plan.channels)}-{best}": plan for plan in (chosen, half)}


def pruned(contributions: Contributions, order: Mapping[str, int], fits: Fits) -> Selection:
    """Every layer that promises something with the channels that promise most, then fewer.

    Biases are those of the best depth. Until it fits, the layer of the least gain is left out.
    ``order`` has the layers' positions.
    """
    depth = max(range(len(contributions.biases)), key=lambda last: contributions.biases[last])
    left = {
        layer: max(options, key=lambda count: options[count])
        for layer, options in contributions.weights.items()
        if max(options.values(), default=0.0) > 0.0
    }
    while True:
        chosen = Selection(depth, tuple(sorted(left.items(), key=lambda item: order[item[0]])))
        if not left or fits(chosen):
            return chosen
        del left[min(left, key=lambda layer: contributions.weights[layer][left[layer]])]
