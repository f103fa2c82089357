"""What a normalization makes of its constants, and which it can't hold."""

from __future__ import annotations

import numpy as np
import pytest

from codegen.arithmetic.integers import Error
from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.layer_normalization import (
    LARGEST_GROUP,
    LAYER_NORMALIZATION,
    LayerNormalization,
    input_errors,
    layer_normalization_arithmetic,
)


def case(
    gain: np.ndarray, shift: np.ndarray, out: float, *, centred: bool = True
) -> tuple[Graph, LayerNormalization]:
    op = LayerNormalization("n", "x", "y", tuple(gain), tuple(shift), 1e-5, centred)
    shape = (1, 50, len(gain))
    tensors = {"x": Tensor("x", shape, 0.03, 3), "y": Tensor("y", shape, out, -5)}
    return Graph("case", "x", tensors, (op,)), op


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("count", [3, 4, 16, 64, 500, 4000])
@pytest.mark.parametrize("spread", [2, 40, 300])
def test_codes_and_errors_are_those_of_real_numbers(count: int, spread: int, centred: bool) -> None:
    draw = np.random.default_rng([count, spread])
    gain, shift = draw.normal(1, 0.5, count), draw.normal(0, 0.5, count)
    graph, op = case(gain, shift, 0.03, centred=centred)
    codes = np.clip(draw.normal(5, spread, (1, 50, count)), -128, 127).astype(np.int64)
    real = 0.03 * (codes - (codes.mean(axis=-1, keepdims=True) if centred else 3))
    values = real / np.sqrt((real**2).mean(axis=-1, keepdims=True) + 1e-5)
    exact = (gain * values + shift) / 0.03 - 5
    found = LAYER_NORMALIZATION.forward(graph, op, [codes])
    inside = np.abs(exact) < 200
    assert np.abs(found - exact)[inside].max() <= 0.6
    errors = draw.integers(-900, 900, codes.shape)
    (wanted,) = LAYER_NORMALIZATION.gradients(graph, op, [codes], errors.astype(np.float64))
    by = layer_normalization_arithmetic(graph, op)
    made = input_errors(by, Error(errors, 0), codes)
    got = made.codes * 2.0**made.exponent
    assert (got * wanted).sum() >= 0.9999 * np.linalg.norm(got) * np.linalg.norm(wanted)
    assert np.linalg.norm(got) == pytest.approx(np.linalg.norm(wanted), rel=2e-3)


def test_groups_that_are_too_large_are_refused_by_name() -> None:
    ones = np.ones(LARGEST_GROUP + 1)
    with pytest.raises(
        ModelError, match=r"layer n: normalizes 16385 elements .* each pixel, or pool"
    ):
        layer_normalization_arithmetic(*case(ones, ones, 0.03))


@pytest.mark.parametrize(("gain", "shift"), [(1e9, 0.0), (1.0, 1e9)])
def test_constants_out_of_all_proportion_are_refused_by_name(gain: float, shift: float) -> None:
    both = np.full(4, gain), np.full(4, shift)
    with pytest.raises(ModelError, match=r"layer n: its scale and bias are .* steps .*calibrate"):
        layer_normalization_arithmetic(*case(*both, 0.03))
