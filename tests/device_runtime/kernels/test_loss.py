"""tf_cross_entropy against floating point, on this machine and on emulated cores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.layers import gain
from codegen.reference.interpreter import binary_error
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all


@examples(100)
@given(
    st.integers(1, 12),
    st.integers(0, 2**20),
    st.floats(1e-9, 1e-2),
    st.sampled_from([0.1, 1.0, 10.0]),
)
def test_loss_and_error_are_those_of_softmax(
    classes: int, seed: int, unit: float, spread: float
) -> None:
    draw = np.random.default_rng(seed)
    logits = np.rint(draw.normal(0, spread, classes) / unit).clip(-(2**31) + 1, 2**31 - 1)
    label = int(draw.integers(classes))
    layer = Struct(
        ("H", 1),
        ("H", classes),
        ("h", 0),
        ("I", gain(unit * math.log2(math.e) * 2**16).word),
        ("h", 0),
        ("b", 0),
        ("I", 0),
        ("I", 0),
    )
    error, scale = np.zeros(classes, np.int16), Struct(("i", 0), ("i", 0))
    call = call_all("tf_cross_entropy", [layer, logits.astype(np.int32), label, error, scale])
    # Nothing counts as further below the largest than 31 powers of two.
    real = np.maximum((logits - logits.max()) * unit, -31 * math.log(2))
    probability = np.exp(real) / np.exp(real).sum()
    assert call.result / 2**16 == pytest.approx(-math.log(probability[label]), abs=2e-3)
    exponent, magnitude = scale.values
    assert magnitude == np.abs(error.astype(int)).max()
    target = probability - (np.arange(classes) == label)
    np.testing.assert_allclose(error * 2.0**exponent, target, atol=1e-4)


@examples(100)
@given(
    st.integers(1, 16),
    st.integers(0, 2**20),
    st.floats(1e-9, 1e-2),
    st.sampled_from([0.1, 1.0, 10.0, 300.0]),
)
def test_binary_loss_and_error_are_those_of_sigmoids(
    outputs: int, seed: int, unit: float, spread: float
) -> None:
    draw = np.random.default_rng(seed)
    logits = np.rint(draw.normal(0, spread, outputs) / unit).clip(-(2**31) + 1, 2**31 - 1)
    logits[draw.random(outputs) < 0.1] = 0
    label = int(draw.integers(1 << outputs))
    loss_gain = gain(unit * math.log2(math.e) * 2**16)
    layer = Struct(
        ("H", 1),
        ("H", outputs),
        ("h", 0),
        ("I", loss_gain.word),
        ("h", 0),
        ("b", 0),
        ("I", 0),
        ("I", 0),
    )
    error, scale = np.zeros(outputs, np.int16), Struct(("i", 0), ("i", 0))
    call = call_all(
        "tf_binary_cross_entropy", [layer, logits.astype(np.int32), label, error, scale]
    )
    expected, exponent, loss_q16 = binary_error(loss_gain, logits.astype(np.int64), label)
    np.testing.assert_array_equal(error, expected)
    assert call.result == loss_q16
    assert scale.values == [exponent, np.abs(error.astype(int)).max()]
    # Nothing counts as further from 0 than 31 powers of two.
    real = np.clip(logits * unit, -31 * math.log(2), 31 * math.log(2))
    targets = label >> np.arange(outputs) & 1
    assert loss_q16 / 2**16 == pytest.approx(
        np.logaddexp(0, np.where(targets == 1, -real, real)).mean(), abs=2e-3
    )
    wanted = (1 / (1 + np.exp(-real)) - targets) / outputs
    np.testing.assert_allclose(
        error * 2.0**exponent, wanted, atol=1e-4 * np.abs(wanted).max() + 2**-29
    )
