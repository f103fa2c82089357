"""Equalization: the function stays, the noise falls, and ends of activations are respected."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.graph.floats import NO_CLAMP, Clamp, Coding, FloatConv, FloatGraph, StoredIntegers
from codegen.importer.model import import_model
from codegen.operators.add import FloatAdd
from codegen.operators.execution import evaluate
from codegen.quantization import cross_layer
from codegen.quantization.calibration import RangeRule, observe
from codegen.quantization.cross_layer import HEADROOM, LARGEST_FACTOR, equalize, imbalance, pairs
from codegen.quantization.quantize import quantize
from codegen.quantization.report import compare
from tests.codegen.quantization.uneven_network import RELU, RELU6, conv, network, samples

MODELS = Path(__file__).parents[1] / "models"


def factors_of(before: FloatGraph, after: FloatGraph, name: str) -> NDArray[np.float64]:
    return np.asarray(conv(before, name).bias / conv(after, name).bias)


@pytest.mark.parametrize("seed", range(4))
def test_with_relu_the_function_stays_on_any_input(seed: int) -> None:
    graph = network(seed)
    equalized, done = equalize(graph, observe(graph, samples()))
    assert any(pair.strength is not None for pair in done)
    unseen = samples(20, seed=1) * 5.0
    before, after = evaluate(graph, unseen)["logits"], evaluate(equalized, unseen)["logits"]
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


def with_stored(graph: FloatGraph, *names: str) -> FloatGraph:
    """``graph`` with integers in the layers ``names``, which stand for what they compute."""

    def stored(op: FloatConv) -> FloatConv:
        scale = np.abs(op.weight).max(axis=(1, 2, 3)) / 127
        codes = np.rint(op.weight / scale[:, None, None, None]).astype(np.int16)
        weight = codes * scale[:, None, None, None]
        return dataclasses.replace(op, weight=weight, stored=StoredIntegers(codes, scale, None))

    ops = [stored(op) if isinstance(op, FloatConv) and op.name in names else op for op in graph.ops]
    return dataclasses.replace(graph, ops=tuple(ops))


@pytest.mark.parametrize("name", ["dw", "project"])
def test_layers_that_came_as_integers_are_rescaled_with_them_or_without(name: str) -> None:
    graph = with_stored(network(), name)
    equalized, done = equalize(graph, observe(graph, samples()))
    assert {name} <= {pair.second for pair in done if pair.strength is not None}
    exact = evaluate(graph, samples())["logits"]
    np.testing.assert_allclose(evaluate(equalized, samples())["logits"], exact, rtol=1e-9)
    layer = conv(equalized, name)
    if name == "dw":
        assert layer.stored is not None
        kept = layer.stored.weight * layer.stored.weight_scale[:, None, None, None]
        np.testing.assert_allclose(kept, layer.weight, rtol=1e-12)
    report = compare(equalized, quantize(equalized, samples()), samples(40, seed=77))
    assert (report.layers[-1].accumulated.sqnr_db or 0.0) > 20.0


def test_a_tensor_that_the_file_codes_is_not_rescaled() -> None:
    graph = dataclasses.replace(network(), codings={"expand": Coding(0.01, -128)})
    assert "dw" not in {pair.second.name for pair in pairs(graph)}


@pytest.mark.parametrize("seed", range(4))
def test_with_relu6_the_function_stays_on_the_calibration_set(seed: int) -> None:
    graph = network(seed, clamp=RELU6)
    statistics = observe(graph, samples())
    assert statistics["expand"].at_cap > 0
    equalized, done = equalize(graph, statistics)
    assert any(pair.strength is not None and pair.fixed_channels for pair in done)
    before, after = (evaluate(g, samples())["logits"] for g in (graph, equalized))
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


def test_channels_that_reach_the_cap_are_left_alone_and_no_other_gets_there() -> None:
    graph = network(clamp=RELU6)
    statistics = observe(graph, samples())
    equalized, _ = equalize(graph, statistics)
    after = observe(equalized, samples())
    for name in ("expand", "dw", "last"):
        at_cap = statistics[name].high >= 6.0
        np.testing.assert_array_equal(factors_of(graph, equalized, name)[at_cap], 1.0)
        assert (after[name].high[~at_cap] < 6.0).all()


@pytest.mark.parametrize("clamp", [RELU, RELU6])
def test_the_int8_model_has_less_noise_after_equalization(clamp: Clamp) -> None:
    for seed in range(3):
        graph = network(seed, clamp=clamp)
        equalized, _ = equalize(graph, observe(graph, samples()))
        unseen = samples(40, seed=77)
        noise = []
        for made in (graph, equalized):
            report = compare(made, quantize(made, samples()), unseen)
            assert report.layers[-1].layer == "head"
            noise.append(report.layers[-1].accumulated.sqnr_db)
        assert noise[0] is not None
        assert noise[1] is not None
        assert noise[1] > noise[0] + 3.0


def test_a_balanced_network_is_not_touched() -> None:
    graph = network(spread=0.0)
    equalized, done = equalize(graph, observe(graph, samples()))
    assert all(pair.strength is None and pair.predicted_noise == 1.0 for pair in done)
    assert all(now is before for now, before in zip(equalized.ops, graph.ops, strict=True))


def test_predicted_noise_is_that_of_the_layer_with_all_else_exact() -> None:
    """The prediction's oracle: int8 tensor and weights of one pair, measured."""
    graph = network(seed=2)
    statistics = observe(graph, samples())
    equalized, done = equalize(graph, statistics)
    pair = next(pair for pair in done if pair.first == "expand")
    assert pair.strength is not None

    def noise_after_depthwise(made: FloatGraph) -> float:
        # Only the tensor `expand` is rounded (depthwise weights keep their relative error).
        values = evaluate(made, samples())
        low, high = observe(made, samples())["expand"].range(RangeRule())
        step = (high - low) / 255
        rounded = np.rint(values["expand"] / step) * step
        second = dataclasses.replace(conv(made, "dw"), clamp=NO_CLAMP, input="x")
        alone = FloatGraph("one", "x", {"x": made.shapes["expand"]}, (second,))
        error = evaluate(alone, rounded)["dw"] - evaluate(alone, values["expand"])["dw"]
        return float((error**2).sum())

    before = noise_after_depthwise(graph)
    # The equalized depthwise layer's own rows are divided for the next pair: undo that.
    undo = factors_of(graph, equalized, "dw")[:, None, None, None]
    layer = conv(equalized, "dw")
    ops = tuple(
        dataclasses.replace(layer, weight=layer.weight * undo) if op.name == "dw" else op
        for op in equalized.ops
    )
    after = noise_after_depthwise(dataclasses.replace(equalized, ops=ops))
    assert after / before == pytest.approx(pair.predicted_noise, rel=0.5)


def test_factors_stay_within_their_bounds_and_leave_headroom() -> None:
    graph = network(spread=9.0)
    statistics = observe(graph, samples())
    equalized, _ = equalize(graph, statistics)
    after = observe(equalized, samples())
    for name in ("expand", "dw", "project", "last"):
        factors = factors_of(graph, equalized, name)
        assert factors.min() >= 1 / LARGEST_FACTOR * 0.999
        assert factors.max() <= LARGEST_FACTOR * 1.001
        magnitude = after[name].channel_magnitude
        stretched = factors < 1.0
        widest = statistics[name].channel_magnitude.max()
        assert magnitude[stretched].max() <= widest / HEADROOM * 1.001


def test_dead_and_unread_channels_keep_their_weights() -> None:
    graph = network()
    first = conv(graph, "expand")
    weight, bias = first.weight.copy(), first.bias.copy()
    weight[3], bias[3] = 4e-9, -1.0  # dead as in the MCUNet models
    weight[5], bias[5] = 0.0, 0.0
    project = conv(graph, "project")
    unread = project.weight.copy()
    unread[:, 4] = 0.0
    changed = {
        "expand": dataclasses.replace(first, weight=weight, bias=bias),
        "project": dataclasses.replace(project, weight=unread),
    }
    graph = dataclasses.replace(graph, ops=tuple(changed.get(op.name, op) for op in graph.ops))
    equalized, done = equalize(graph, observe(graph, samples()))
    assert any(pair.strength is not None for pair in done)
    np.testing.assert_array_equal(conv(equalized, "expand").weight[[3, 5]], weight[[3, 5]])
    np.testing.assert_array_equal(conv(equalized, "project").weight[:, 4], 0.0)
    assert all(np.isfinite(conv(equalized, name).weight).all() for name in ("expand", "project"))


@pytest.mark.parametrize("family", ["lenet", "resnet8", "mobilenet_v2", "fire", "inertial"])
def test_exported_networks_compute_the_same_after_equalization(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools, flattened pictures and 1-D kernels between the layers; every pair is changed."""
    monkeypatch.setattr(cross_layer, "_LEAST_GAIN", np.inf)
    monkeypatch.setattr(cross_layer, "HEADROOM", 1.0)
    graph = import_model(MODELS / f"{family}_script.onnx")
    random = np.random.default_rng(4)
    x = graph.arrange(random.normal(size=(24, *graph.sample_shape)).astype(np.float32))
    equalized, done = equalize(graph, observe(graph, x))
    assert any(pair.strength is not None for pair in done)
    before, after = (evaluate(made, x)[graph.head.output] for made in (graph, equalized))
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-9 * np.abs(before).max())


def test_only_tensors_with_one_reader_make_pairs() -> None:
    graph = network()
    named = [(pair.first.name, pair.second.name) for pair in pairs(graph)]
    assert named == [("expand", "dw"), ("dw", "project"), ("project", "last"), ("last", "head")]
    forked = dataclasses.replace(
        graph,
        ops=(*graph.ops[:3], FloatAdd("sum", ("dw", "project"), "project2"), *graph.ops[4:]),
    )
    named = [(pair.first.name, pair.second.name) for pair in pairs(forked)]
    assert named == [("expand", "dw")]


def test_imbalance_is_the_widest_over_the_median_of_the_living() -> None:
    assert imbalance(np.array([0.0, 1.0, 2.0, 32.0, 0.0])) == 16.0
    assert imbalance(np.zeros(4)) == 1.0
