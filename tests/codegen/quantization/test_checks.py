"""Checks: each finds what it is about, in the right layer, and nothing in a healthy network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.errors import CalibrationError
from codegen.graph.floats import Clamp, FloatConv, FloatGraph, FloatHead, StoredIntegers
from codegen.plan_search.samples import Samples
from codegen.plan_search.training import Schedule, engines, score, train
from codegen.program.plans import default_plans
from codegen.quantization.calibration import HeadStatistics, observe
from codegen.quantization.checks import (
    USUAL_RATE,
    Finding,
    check_integers,
    check_logits,
    check_samples,
    check_statistics,
    notes,
)
from codegen.quantization.quantize import quantize, quantize_input
from tests.codegen.quantization.uneven_network import RELU6, conv, network, samples


def findings_of(graph: FloatGraph, x: NDArray[np.float32]) -> dict[tuple[str, str], float]:
    found = check_statistics(graph, observe(graph, x)) + check_integers(quantize(graph, x), graph)
    return {(finding.check, finding.layer): finding.value for finding in found}


def with_layer(graph: FloatGraph, layer: FloatConv) -> FloatGraph:
    ops = tuple(layer if op.name == layer.name else op for op in graph.ops)
    return dataclasses.replace(graph, ops=ops)


def test_a_healthy_network_has_no_findings() -> None:
    assert findings_of(network(spread=0.0), samples()) == {}


def test_dead_channels_are_counted() -> None:
    graph = network(spread=0.0)
    first = conv(graph, "expand")
    bias = first.bias.copy()
    bias[[2, 7]] = -1e3  # never above 0, so Relu makes zeros of all
    found = findings_of(with_layer(graph, dataclasses.replace(first, bias=bias)), samples())
    assert found[("dead-channels", "expand")] == 2


def test_imbalance_is_named_where_equalization_can_help() -> None:
    found = findings_of(network(spread=9.0), samples())
    assert found[("imbalance", "expand")] > 16.0


def test_outliers_are_named_with_the_ratio_of_ranges() -> None:
    x = samples(200)
    x[0, 0, 0, 0] = 100.0
    found = findings_of(network(spread=0.0), x)
    inside = np.quantile(x, 0.999) - np.quantile(x, 0.001)
    assert found[("outliers", "x")] == pytest.approx((100.0 - x.min()) / inside, rel=0.1)


def test_tiny_scales_and_biases_at_the_limit_are_counted() -> None:
    graph = network(spread=0.0, clamp=RELU6)
    first = conv(graph, "expand")
    weight, bias = first.weight.copy(), first.bias.copy()
    weight[1:4] *= 1e-9
    weight[4] = 0.0
    bias[5:7] = 1e9, -1e9  # the clamp hides how large they are
    graph = with_layer(graph, dataclasses.replace(first, weight=weight, bias=bias))
    found = findings_of(graph, samples())
    assert found[("tiny-scale", "expand")] == 4
    assert found[("bias-limit", "expand")] == 2


def test_a_quantized_model_is_checked_by_its_stored_integers() -> None:
    graph = network(spread=0.0)
    first = conv(graph, "expand")
    scale = np.full(12, 1e-3)
    scale[0] = 3.9e-9
    stored = StoredIntegers(np.zeros(first.weight.shape, np.int8), scale, None)
    made = with_layer(graph, dataclasses.replace(first, stored=stored))
    found = {(f.check, f.layer): f.value for f in check_integers(quantize(graph, samples()), made)}
    assert found[("tiny-scale", "expand")] == 1


def test_notes_are_one_sentence_per_check_and_name_the_worst_layers() -> None:
    found = [Finding(check="dead-channels", layer=f"c{i}", value=i) for i in range(1, 10)]
    found.append(Finding(check="imbalance", layer="wide", value=37.25))
    dead, uneven = notes(found)
    assert dead.startswith("45 channels that are constant on the calibration set, in c9 (9), c8")
    assert "c4 (4) and 3 more" in dead
    assert "wide (37.2)" in uneven
    assert "--equalize" in uneven
    assert notes([]) == ()


def pixels(count: int = 16) -> NDArray[np.float32]:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8)).astype(np.float32)


def sample_findings(graph: FloatGraph, x: NDArray[np.float32]) -> list[tuple[str, float]]:
    return [(found.check, found.value) for found in check_samples(graph, x, observe(graph, x))]


def test_unscaled_pixels_are_refused_where_they_drive_relu6_to_its_end() -> None:
    graph = network(spread=0.0, clamp=RELU6)
    with pytest.raises(
        CalibrationError, match=r"0 to 255.*'expand' is at its upper end 6.*x / 255"
    ):
        sample_findings(graph, pixels())


def test_unscaled_pixels_are_noted_where_nothing_tells_what_the_model_wants() -> None:
    graph = network(spread=0.0, clamp=RELU6)
    first = conv(graph, "expand")
    scaled = with_layer(graph, dataclasses.replace(first, weight=first.weight / 255.0))
    assert sample_findings(scaled, pixels(40)) == [("raw-pixels", 255.0)]
    assert sample_findings(network(spread=0.0), pixels(40)) == [("raw-pixels", 255.0)]


def test_other_inputs_are_no_pixels() -> None:
    graph = network(spread=0.0, clamp=RELU6)
    assert sample_findings(graph, samples(40) * 100) == []
    assert sample_findings(graph, pixels(40) / 255) == []


def test_few_samples_are_noted() -> None:
    found = check_samples(network(), samples(12), observe(network(), samples(12)))
    assert [(f.check, f.layer, f.value) for f in found] == [("few-samples", "x", 12)]
    assert notes(found)[0].startswith("few samples of the input x (12)")


def far_apart(scale: float, spread: float) -> tuple[FloatGraph, NDArray, NDArray]:
    """A fresh classifier with pixels ``scale`` and a head ``spread`` times as large as usual, and
    samples of five classes that it can learn."""
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 5, 450)
    x = draw.normal(size=(5, 2, 6, 6))[labels] + draw.normal(0, 1.2, (450, 2, 6, 6))
    shapes = {"x": (2, 6, 6), "c": (8, 1, 1)}
    hidden = draw.normal(0, 0.12, (8, 2, 6, 6))
    ops = (
        FloatConv("hidden", "x", "c", hidden, np.zeros(8), clamp=Clamp(0.0)),
        FloatHead("head", "c", "y", spread * draw.normal(0, 0.5, (5, 8)), np.zeros(5)),
    )
    return FloatGraph("far", "x", shapes, ops), (scale * x).astype(np.float32), labels


@pytest.mark.parametrize(("scale", "spread"), [(1, 300), (1, 3000), (255, 1)])
def test_logits_too_far_apart_are_named_with_a_rate_that_trains_them(
    scale: float, spread: float
) -> None:
    graph, x, labels = far_apart(scale, spread)
    head = HeadStatistics()
    observe(graph, x, head)
    (finding,) = check_logits(graph, head)
    assert finding.layer == "head"
    assert f"head ({finding.value:.2g})" in notes([finding])[0]
    quantized = quantize(graph, x)
    codes = quantize_input(quantized, x.transpose(0, 2, 3, 1))
    training, held = Samples(codes[:300], labels[:300]), Samples(codes[300:], labels[300:])
    plan = default_plans(quantized)[-1]
    hits = []
    for rate in (USUAL_RATE, finding.value):
        with engines(quantized, quantized.input, [plan]) as (engine,):
            train(engine, training, Schedule(epochs=8, learning_rate=rate))
            hits.append(score(engine, held).hits)
    assert hits[1] > 0.75
    if (
        spread > 1
    ):  # through weights of that size, steps of the usual rate put the layers before out
        assert hits[0] < 0.3


def test_logits_of_usual_distances_are_no_finding() -> None:
    for scale, spread in ((1, 1), (1, 10), (255, 20)):
        graph, x, _ = far_apart(scale, spread)
        head = HeadStatistics()
        observe(graph, x, head)
        assert check_logits(graph, head) == []


def test_features_of_unlike_size_are_counted() -> None:
    draw = np.random.default_rng(3)
    shapes = {"x": (4, 1, 1), "h": (6, 1, 1)}
    ops = (
        FloatConv("hidden", "x", "h", draw.normal(size=(6, 4, 1, 1)), np.zeros(6)),
        FloatHead("head", "h", "y", draw.normal(size=(3, 6)), np.zeros(3)),
    )
    graph = FloatGraph("features", "x", shapes, ops)
    x = draw.normal(size=(64, 4, 1, 1)).astype(np.float32)
    assert "unlike-inputs" not in {check for check, _ in findings_of(graph, x)}
    x *= np.array([1000.0, 1.0, 0.01, 500.0], np.float32).reshape(4, 1, 1)
    assert findings_of(graph, x)[("unlike-inputs", "x")] == 2
