"""Contributions from squared gradients: the quick estimate, one backward pass per sample.

Training value w of a layer by SGD on sample n moves it by -η·g, g = ∂L_n/∂w in real units (the
device's update is SGD in real units: docs/specification/arithmetic.md, QAS). To first order
that lowers L_n by η·g². Summed over the trained values and averaged over samples this is η times
the trace of the empirical Fisher information matrix, restricted to them:

    contribution(S) = η/N · Σ_n Σ_{w ∈ S} min(|g|, range_w / η) · |g|      nats per step

An int8 weight can't move by more than its range of 254 steps: the limit matters for channels
whose scale is next to zero. The trace as a measure of importance: Theis et al., arXiv 1801.05787;
Molchanov et al., arXiv 1906.10771. For choosing what to train on a device: Kwon et al.,
TinyTrain, arXiv 2307.09988.

Disjoint sets of values add up exactly, unlike measured gains. What the estimate can't see is how
far a direction carries beyond the first step, and whether samples agree on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from codegen.graph.ir import Conv, Graph
from codegen.host_toolchain import Progress
from codegen.plan_search.candidates import ChannelOrder, channel_counts
from codegen.plan_search.contributions import Contributions, Journal
from codegen.plan_search.samples import Samples
from codegen.program.lowering import lower
from codegen.program.plans import Plan, PlanSpec, WeightSpec, resolve
from codegen.reference.float_autodiff import forward_integers, real_gradients
from codegen.reference.interpreter import Interpreter

UNIT = "nats per step"
SAMPLES_PER_RESULT = 16
WEIGHT_RANGE_STEPS = 254

Floats = NDArray[np.float64]


def full_plan(graph: Graph) -> Plan:
    """Every bias and every weight of ``graph``."""
    layers = [op.name for op in graph.convolutions]
    weights = [WeightSpec(layer=layer) for layer in layers]
    return resolve(PlanSpec(name="full", biases=layers, weights=weights), graph)


def channel_traces(
    graph: Graph,
    samples: Samples,
    learning_rate: float,
    journal: Journal,
    progress: Progress,
) -> dict[str, Floats]:
    """Expected first-order gain of a step in nats, by tensor.

    ``LAYER.weight`` → one value per channel (last axis), ``LAYER.bias`` → one value, of all
    biases. Whole batches of samples are kept in ``journal`` as they are done.
    """
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    totals: dict[str, Floats] = {}
    for start in range(0, len(samples), SAMPLES_PER_RESULT):
        progress("Fisher information", start, len(samples))
        batch = samples.take(np.arange(start, min(start + SAMPLES_PER_RESULT, len(samples))))
        name = f"fisher {start} {len(batch)}"
        if name not in journal:
            sums = _batch_traces(graph, interpreter, batch, learning_rate)
            journal.add(name, {tensor: values.tolist() for tensor, values in sums.items()})
        for tensor, values in journal[name].items():
            totals[tensor] = totals.get(tensor, 0.0) + np.asarray(values, np.float64)
    progress("Fisher information", len(samples), len(samples))
    return {tensor: values / len(samples) for tensor, values in totals.items()}


def _batch_traces(
    graph: Graph, interpreter: Interpreter, batch: Samples, learning_rate: float
) -> dict[str, Floats]:
    totals: dict[str, Floats] = {}
    for codes, label in zip(batch.codes, batch.labels.tolist(), strict=True):
        interpreter.score(codes, label)
        activations, masks = forward_integers(interpreter)
        gradients = real_gradients(graph, activations, masks, interpreter.logits, label)
        for op in graph.convolutions:
            bias_step = graph.tensors[op.input].scale * op.weight_scale
            bias = gradients[f"{op.name}.bias"] / bias_step
            weight_step = op.weight_scale
            if isinstance(op, Conv):
                weight_step = weight_step[:, None, None, None]
            weight = np.abs(gradients[f"{op.name}.weight"] / weight_step)
            reach = WEIGHT_RANGE_STEPS * weight_step / learning_rate
            gains = learning_rate * weight * np.minimum(weight, reach)
            for name, gain in (
                (f"{op.name}.weight", gains.sum(axis=tuple(range(gains.ndim - 1)))),
                (f"{op.name}.bias", np.array([learning_rate * float(bias @ bias)])),
            ):
                totals[name] = totals.get(name, 0.0) + gain
    return totals


def fisher_contributions(
    graph: Graph, traces: dict[str, Floats], order: ChannelOrder
) -> Contributions:
    """Contributions of all depths and all (layer, ratio) from ``channel_traces``.

    The channels counted are the first of each layer's ``order``, which a plan would train.
    """
    biases = [0.0]
    weights = {}
    for op in reversed(graph.convolutions):
        biases.append(biases[-1] + float(traces[f"{op.name}.bias"][0]))
    for op in graph.convolutions:
        by_rank = np.cumsum(traces[f"{op.name}.weight"][list(order[op.name])])
        weights[op.name] = {count: float(by_rank[count - 1]) for count in channel_counts(op)}
    return Contributions("fisher", UNIT, tuple(biases), weights)
