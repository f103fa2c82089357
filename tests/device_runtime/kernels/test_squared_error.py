"""The squared error against inputs and targets, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.layers import CODE_UNITS, TargetArithmetic, gain
from codegen.reference.interpreter import squared_error
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all


@examples(80)
@given(
    st.integers(2, 80), st.integers(0, 9999), st.floats(1e-7, 1e-2), st.floats(0.002, 0.5),
    st.sampled_from([0.0, 0.01, 1.0, 300.0]),
)  # fmt: skip
def test_loss_and_error_are_those_of_real_arithmetic(
    size: int, seed: int, unit: float, step: float, distance: float
) -> None:
    draw = np.random.default_rng(seed)
    constants = TargetArithmetic(gain(step / unit), gain(2 * unit / size))
    zero = int(draw.integers(-128, 128))
    codes = draw.integers(-128, 128, size).astype(np.int8)
    wanted = step * (codes.astype(float) - zero)
    values = np.rint((wanted + distance * draw.normal(size=size)) / unit)
    values = np.clip(values, -(2**31) + 1, 2**31 - 1).astype(np.int32)
    layer = Struct(
        ("H", size), ("h", zero), ("I", 0),
        ("I", constants.target_scale.word), ("I", constants.error_scale.word),
    )  # fmt: skip
    error, scale = np.zeros(size, np.int16), Struct(("i", 0), ("i", 0))
    call = call_all("tf_mean_squared_error", [layer, values, codes, error, scale])
    expected, exponent, loss = squared_error(
        constants, values.astype(np.int64), codes.astype(np.int64) - zero
    )
    np.testing.assert_array_equal(error, expected)
    assert scale.values == [exponent, int(np.abs(expected).max())]
    assert call.result & 0xFFFFFFFF == loss
    real = values * unit - wanted
    if 2000 * unit < np.abs(real).max() < 2**30 * unit:
        np.testing.assert_allclose(
            error * 2.0**exponent, 2 / size * real, atol=np.abs(real).max() / size * 2e-3
        )
        if 2.0**-10 < np.mean(real**2) < 2.0**15:
            assert loss / 2**16 == pytest.approx(np.mean(real**2), rel=5e-3)


@examples(60)
@given(
    st.integers(2, 80), st.integers(0, 9999), st.floats(0.002, 0.5), st.floats(0.002, 0.5),
    st.sampled_from([0.0, 0.2, 1.0]),
)  # fmt: skip
def test_codes_as_outputs_have_the_loss_and_the_error_of_real_arithmetic(
    size: int, seed: int, output: float, step: float, distance: float
) -> None:
    draw = np.random.default_rng(seed)
    unit, loss_scale = output / CODE_UNITS, gain(size / (2 * output) ** 2)
    constants = TargetArithmetic(gain(step / unit), gain(2 * unit * output / size), loss_scale)
    zero, zero_of_input = draw.integers(-128, 128, 2).tolist()
    wanted = draw.integers(-128, 128, size).astype(np.int8)
    target = step * (wanted.astype(float) - zero_of_input)
    near = target + distance * draw.normal(size=size)
    codes = np.clip(np.rint(near / output) + zero, -128, 127).astype(np.int8)
    layer = Struct(
        ("H", size), ("h", zero_of_input), ("I", 0),
        ("I", constants.target_scale.word), ("I", constants.error_scale.word),
        ("h", zero), ("H", 0), ("I", loss_scale.word),
    )  # fmt: skip
    error, scale = np.zeros(size, np.int16), Struct(("i", 0), ("i", 0))
    call = call_all("tf_coded_squared_error", [layer, codes, wanted, error, scale])
    made = codes.astype(np.int64) - zero
    expected, exponent, loss = squared_error(
        constants, made * CODE_UNITS, wanted.astype(np.int64) - zero_of_input
    )
    np.testing.assert_array_equal(error, expected)
    assert scale.values == [exponent, int(np.abs(expected).max())]
    assert call.result & 0xFFFFFFFF == loss
    real = output * made - target
    if np.abs(real).max() > 10 * unit:
        # To 1/256 of a step of the output, which is half as much, and 15 bits of the largest.
        np.testing.assert_allclose(
            error * 2.0**exponent, 2 * output / size * real,
            atol=2 * output / size * (unit + np.abs(real).max() * 2e-4),
        )  # fmt: skip
        if 2.0**-6 < np.mean(real**2) < 2.0**15:
            assert loss / 2**16 == pytest.approx(np.mean(real**2), rel=2e-2)


@examples(40)
@given(
    st.integers(1, 20), st.integers(1, 9), st.integers(0, 9999), st.floats(1e-5, 1e-3),
    st.sampled_from([0.01, 1.0, 300.0]),
)  # fmt: skip
def test_targets_lie_behind_an_input_of_any_size(
    size: int, inputs: int, seed: int, unit: float, largest: float
) -> None:
    draw = np.random.default_rng(seed)
    step = largest / 2**14
    constants = TargetArithmetic(gain(step / unit), gain(2 * unit / size))
    targets = draw.integers(-(2**15), 2**15, size).astype("<i2")
    sample = np.concatenate([draw.integers(-128, 128, inputs).astype(np.int8), targets.view("i1")])
    wanted = step * targets.astype(float)
    values = np.rint((wanted + largest * draw.normal(size=size)) / unit).astype(np.int32)
    target = Struct(
        ("H", size), ("h", 0), ("I", inputs),
        ("I", constants.target_scale.word), ("I", constants.error_scale.word),
    )  # fmt: skip
    error, scale = np.zeros(size, np.int16), Struct(("i", 0), ("i", 0))
    call = call_all("tf_mean_squared_error", [target, values, sample, error, scale])
    expected, exponent, loss = squared_error(
        constants, values.astype(np.int64), targets.astype(np.int64)
    )
    np.testing.assert_array_equal(error, expected)
    assert scale.values == [exponent, int(np.abs(expected).max())]
    assert call.result & 0xFFFFFFFF == loss
    real = values * unit - wanted
    if np.abs(real).max() > 2000 * unit:
        np.testing.assert_allclose(
            error * 2.0**exponent, 2 / size * real, atol=np.abs(real).max() / size * 2e-3
        )
