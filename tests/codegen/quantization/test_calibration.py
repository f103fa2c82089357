"""Ranges of activations: against brute force over all values, and independent of batches."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from codegen.errors import CalibrationError, ModelError
from codegen.graph.floats import FloatConv, FloatGraph, FloatHead
from codegen.graph.ir import Padding
from codegen.operators.execution import evaluate
from codegen.operators.global_average_pool import GlobalAveragePool
from codegen.quantization import calibration
from codegen.quantization.calibration import (
    METHODS,
    Histogram,
    Method,
    RangeRule,
    TensorStatistics,
    activation_code,
    batches,
    observe,
    round_bits,
)

DISTRIBUTIONS = ("normal", "relu", "outliers", "negative", "skewed", "tiny")


def values_of(kind: str, count: int = 60_000, seed: int = 3) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=count)
    match kind:
        case "relu":
            return np.maximum(normal - 0.5, 0.0)
        case "outliers":
            normal[:: count // 5] *= 60.0
            return normal
        case "negative":
            return -(np.abs(normal) ** 1.5)
        case "skewed":
            return rng.lognormal(0.0, 1.2, count) - 1.0
        case "tiny":
            return normal * 1e-12
    return normal


def statistics_of(values: NDArray[np.float64], parts: int = 7) -> TensorStatistics:
    statistics = TensorStatistics(channels=1)
    for part in np.array_split(values, parts):
        statistics.add(part.reshape(-1, 1, 1, 1))
    return statistics


def square_error(values: NDArray[np.float64], low: float, high: float) -> float:
    """Mean square error of int8 codes over low … high, value by value."""
    scale, zero_point = activation_code(low, high)
    codes = np.clip(np.rint(values / scale) + zero_point, -128, 127)
    return float(np.mean((values - scale * (codes - zero_point)) ** 2))


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_min_max_ranges_are_the_limits_to_24_bits_widened_to_zero(kind: str) -> None:
    values = values_of(kind)
    assert statistics_of(values).range(RangeRule("min-max")) == (
        float(np.float32(min(values.min(), 0.0))),
        float(np.float32(max(values.max(), 0.0))),
    )


def test_values_beyond_those_of_float32_have_24_bits_as_well() -> None:
    ends = np.array([1e300, -1e300, 1e-320, 0.0, 1.0 + 2.0**-30])
    assert round_bits(ends) == pytest.approx(ends, rel=2.0**-24, abs=0.0)
    assert round_bits(ends)[3:].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_ranges_do_not_depend_on_the_last_bits_of_sums(kind: str, method: Method) -> None:
    """They differ between CPUs, which add up products in an order of their own."""
    values = values_of(kind)
    rule = RangeRule(method)
    for towards in (-np.inf, np.inf):
        other = np.where(values == 0, values, np.nextafter(values, towards))
        assert statistics_of(other).range(rule) == statistics_of(values).range(rule)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentile_ranges_are_the_quantiles_of_the_values_to_a_bin(
    kind: str, percentile: float
) -> None:
    values = values_of(kind)
    low, high = statistics_of(values).range(RangeRule("percentile", percentile))
    ordered = np.sort(values[values != 0])
    beyond = int(len(ordered) * (100 - percentile) / 100 + 1e-6)
    bin_width = np.abs(values).max() / 2**13
    assert low == pytest.approx(min(ordered[beyond], 0.0), abs=bin_width)
    assert high == pytest.approx(max(ordered[-1 - beyond], 0.0), abs=bin_width)
    assert (ordered > high).sum() <= beyond
    assert (ordered < low).sum() <= beyond


def test_a_percentile_of_100_saturates_nothing() -> None:
    values = values_of("outliers")
    low, high = statistics_of(values).range(RangeRule("percentile", 100.0))
    assert (low, high) == pytest.approx((values.min(), values.max()), rel=2.0**-24)


def test_zeros_do_not_count_for_percentiles() -> None:
    """A sparse tensor would otherwise have all of its signal beyond the percentile."""
    values = np.zeros(1_000_000)
    values[:50] = np.linspace(1.0, 2.0, 50)
    assert statistics_of(values).range(RangeRule("percentile", 99.9))[1] == pytest.approx(
        2.0, rel=1e-3
    )


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_mse_ranges_are_as_good_as_the_best_of_a_brute_force_search(kind: str) -> None:
    values = values_of(kind, count=6_000)
    found = statistics_of(values).range(RangeRule("mse"))
    fractions = np.concatenate([np.geomspace(0.02, 0.3, 12), np.linspace(0.32, 1.0, 35)])
    ends = (
        sorted({end * f for f in fractions})
        for end in (min(values.min(), 0.0), max(values.max(), 0.0))
    )
    best = min(square_error(values, low, high) for low, high in itertools.product(*ends))
    assert square_error(values, *found) <= best * 1.01


def test_mse_narrows_the_range_where_outliers_dominate_and_only_there() -> None:
    normal, uniform = values_of("normal", 600_000), np.random.default_rng(0).uniform(0, 1, 60_000)
    normal[7] = 12.0
    assert statistics_of(normal).range(RangeRule("mse"))[1] < 0.7 * 12.0
    assert statistics_of(uniform).range(RangeRule("mse"))[1] > 0.97


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_square_errors_from_running_sums_equal_those_value_by_value(kind: str) -> None:
    values = values_of(kind)
    histogram = statistics_of(values).histogram
    limits = min(values.min(), 0.0), max(values.max(), 0.0)
    for fraction in (1.0, 0.6, 0.2):
        low, high = (np.array([end * fraction]) for end in limits)
        found = float(histogram.square_errors(low, high)[0]) * histogram.width**2 / values.size
        assert found == pytest.approx(square_error(values, low[0], high[0]), rel=0.02)


def test_histograms_do_not_depend_on_how_the_values_are_split() -> None:
    values = values_of("skewed")
    whole = Histogram()
    whole.add(values)
    # Ascending magnitudes widen the bins again and again.
    ascending = values[np.argsort(np.abs(values))]
    for parts in (5, 100):
        split = Histogram()
        for part in np.array_split(ascending, parts):
            split.add(part)
        assert split.width == whole.width
        np.testing.assert_array_equal(split.counts, whole.counts)


def test_histograms_hold_every_value_in_its_bin() -> None:
    values = np.array([0.0, 1e-30, -1e-30, 3.0, -7.9, 0.0, 1e20])
    histogram = Histogram()
    for value in values:
        histogram.add(np.array([value]))
    assert histogram.zeros == 2
    assert histogram.counts.sum() == 5
    filled = np.flatnonzero(histogram.counts) - len(histogram.counts) // 2
    expected = sorted({int(np.floor(value / histogram.width)) for value in values if value})
    assert filled.tolist() == expected


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_of_zeros_has_an_empty_range(method: calibration.Method) -> None:
    assert statistics_of(np.zeros(50)).range(RangeRule(method)) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("middle", 99.0), "'middle' is unknown; use one of min-max, percentile, mse"),
        (("percentile", 50.0), "above 50, up to 100"),
        (("percentile", 101.0), "above 50, up to 100"),
        (("percentile", float("nan")), "above 50, up to 100"),
    ],
)
def test_rules_that_make_no_range_are_refused(rule: tuple[str, float], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        RangeRule(*rule)  # type: ignore[arg-type]


def wide_graph(size: int = 32, weight_scale: float = 1.0) -> FloatGraph:
    """3 channels in, a 3x3 convolution to 4, pool, head."""
    rng = np.random.default_rng(5)
    weight = rng.normal(size=(4, 3, 3, 3)) * weight_scale
    conv = FloatConv("conv", "x", "conv", weight, rng.normal(size=4), padding=Padding(1, 1, 1, 1))
    head = FloatHead("head", "pool", "head", rng.normal(size=(2, 4)), np.zeros(2))
    shapes = {"x": (3, size, size), "conv": (4, size, size), "pool": (4, 1, 1)}
    return FloatGraph("wide", "x", shapes, (conv, GlobalAveragePool("pool", "conv", "pool"), head))


def samples_of(graph: FloatGraph, count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(6)
    return rng.normal(size=(count, *graph.shapes[graph.input])).astype(np.float32)


def test_observed_channels_have_the_limits_and_squares_of_all_samples() -> None:
    graph = wide_graph()
    samples = samples_of(graph, 45)
    exact = evaluate(graph, samples)
    statistics = observe(graph, samples)
    assert set(statistics) == set(graph.shapes)
    for name, tensor in statistics.items():
        np.testing.assert_array_equal(tensor.low, exact[name].min(axis=(0, 2, 3)))
        np.testing.assert_array_equal(tensor.high, exact[name].max(axis=(0, 2, 3)))
        np.testing.assert_allclose(tensor.mean_square, (exact[name] ** 2).mean(axis=(0, 2, 3)))
        assert tensor.histogram.counts.sum() + tensor.histogram.zeros == exact[name].size


def test_batches_hold_every_sample_once_and_get_shorter_for_large_images() -> None:
    small, large = wide_graph(8), wide_graph(256)
    samples = samples_of(small, 70)
    np.testing.assert_array_equal(np.concatenate(list(batches(small, samples))), samples)
    assert len(next(batches(small, samples))) > len(next(batches(large, samples_of(large, 10))))


def test_memory_does_not_grow_with_the_number_of_samples() -> None:
    graph = wide_graph(48)

    def peak(count: int) -> int:
        samples = samples_of(graph, count)
        tracemalloc.start()
        observe(graph, samples)
        bytes_needed = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return bytes_needed

    few, many = peak(64), peak(320)
    assert many < few * 1.1
    assert few < 300 * 2**20


def test_a_tensor_that_overflows_is_named() -> None:
    graph = wide_graph(8, weight_scale=1e300)
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(ModelError, match="'conv'"):
        observe(graph, samples_of(graph, 8) * np.float32(1e30))
