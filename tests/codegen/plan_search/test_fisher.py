"""Fisher contributions are squared exact gradients, summed as the formula says."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.graph.ir import Conv
from codegen.plan_search.candidates import channel_counts, order_by, order_by_norm
from codegen.plan_search.contributions import Journal
from codegen.plan_search.fisher import channel_traces, fisher_contributions
from codegen.plan_search.samples import Samples
from codegen.program.lowering import lower
from codegen.reference.float_autodiff import forward_integers, real_gradients
from codegen.reference.interpreter import Interpreter
from tests.codegen.random_graphs import full_plan, random_graph


def silent(stage: str, done: int, of: int) -> None:
    pass


def some_samples(seed: int, count: int) -> tuple[object, Samples]:
    graph, codes = random_graph(seed)
    labels = np.arange(count) % graph.head.bias.size
    return graph, Samples(np.resize(codes, (count, *codes.shape[1:])), labels)


def test_traces_are_mean_squares_of_gradients_in_real_units() -> None:
    graph, samples = some_samples(3, 20)
    traces = channel_traces(graph, samples, 1e-3, Journal(None, {}), silent)
    interpreter = Interpreter(lower(graph, full_plan(graph)))
    expected = dict.fromkeys(traces, 0.0)
    for codes, label in zip(samples.codes, samples.labels.tolist(), strict=True):
        interpreter.score(codes, label)
        exact = real_gradients(graph, *forward_integers(interpreter), interpreter.logits, label)
        for op in graph.convolutions:
            input_scale = graph.tensors[op.input].scale
            scale = (
                op.weight_scale[:, None, None, None] if isinstance(op, Conv) else op.weight_scale
            )
            of_weight = (exact[f"{op.name}.weight"] / scale) ** 2
            expected[f"{op.name}.weight"] += (
                1e-3 / 20 * of_weight.reshape(-1, of_weight.shape[-1]).sum(axis=0)
            )
            of_bias = exact[f"{op.name}.bias"] / (input_scale * op.weight_scale)
            expected[f"{op.name}.bias"] += 1e-3 / 20 * np.sum(of_bias**2)
    assert set(traces) == set(expected)
    for name, value in expected.items():
        assert traces[name] == pytest.approx(value, rel=1e-9), name


def test_a_weight_gains_no_more_than_its_range_allows() -> None:
    graph, samples = some_samples(3, 8)
    slow, fast = (
        channel_traces(graph, samples, rate, Journal(None, {}), silent) for rate in (1e-3, 1e6)
    )
    for op in graph.convolutions:
        # At an absurd rate every weight goes to its limit: gain = range * |gradient|, whatever
        # the rate; biases have no such limit.
        assert fast[f"{op.name}.weight"].sum() < 1e8 * slow[f"{op.name}.weight"].sum()
        assert fast[f"{op.name}.bias"] == pytest.approx(1e9 * slow[f"{op.name}.bias"])


def test_contributions_add_up_over_biases_and_over_the_channels_of_the_order() -> None:
    graph, samples = some_samples(5, 16)
    traces = channel_traces(graph, samples, 0.01, Journal(None, {}), silent)
    by_trace = {op.name: order_by(traces[f"{op.name}.weight"]) for op in graph.convolutions}
    by_norm = fisher_contributions(graph, traces, order_by_norm(graph))
    best = fisher_contributions(graph, traces, by_trace)
    layers = [op.name for op in graph.convolutions]
    assert best.biases[0] == 0.0
    assert best.biases[-1] == pytest.approx(sum(traces[f"{name}.bias"][0] for name in layers))
    assert best.biases[1] == pytest.approx(traces[f"{layers[-1]}.bias"][0])
    for op in graph.convolutions:
        values = traces[f"{op.name}.weight"]
        for count in channel_counts(op):
            assert best.weights[op.name][count] == pytest.approx(
                np.sort(values)[::-1][:count].sum()
            )
            assert by_norm.weights[op.name][count] <= best.weights[op.name][count] * (1 + 1e-12)


def test_batches_that_are_done_are_not_computed_again() -> None:
    graph, samples = some_samples(5, 40)
    journal = Journal(None, {})
    once = channel_traces(graph, samples, 0.01, journal, silent)
    name = next(iter(once))
    changed = journal["fisher 16 16"]
    changed[name] = [1e6 for _ in changed[name]]
    again = channel_traces(graph, samples, 0.01, journal, silent)
    assert again[name].min() >= 1e6 / 40 > once[name].max()
