"""The classifier against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import BIAS_BITS, STATE_BITS, apply_gain, round_shift, step_gain
from codegen.arithmetic.layers import Gain
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import Ints, call_all, moved, update, whole

INPUTS = st.integers(1, 50)
CLASSES = st.integers(1, 12)
SEEDS = st.integers(0, 2**20)
INT32_MAX = 2**31 - 1
WEIGHT_GAIN, BIAS_GAIN = Gain(0xC00003, -38), Gain(0x900001, -31)


def gain_word(gain: Gain) -> int:
    """tf_gain."""
    return (gain.mantissa << 8) | (gain.exponent & 0xFF)


def head(inputs: int, classes: int, zero: int, multiplier: int = 1, loss: int = 0) -> Struct:
    """tf_head."""
    return Struct(
        ("H", inputs),
        ("H", classes),
        ("h", zero),
        ("I", loss),
        ("h", multiplier),
        ("b", -4),
        ("I", gain_word(WEIGHT_GAIN)),
        ("I", gain_word(BIAS_GAIN)),
    )


def operands(seed: int, inputs: int, classes: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Input codes, weights, biases, errors: of all sizes."""
    draw = np.random.default_rng(seed)
    codes = draw.integers(-128, 128, inputs)
    weights = draw.integers(-32512, 32513, (classes, inputs)) >> draw.integers(0, 16)
    bias = draw.integers(-INT32_MAX, INT32_MAX + 1, classes) >> draw.integers(0, 31)
    errors = draw.integers(-32767, 32768, classes) >> draw.integers(0, 16)
    return codes, weights, bias, errors


@examples(80)
@given(INPUTS, CLASSES, SEEDS, st.integers(-128, 127))
def test_logits_are_exact_and_saturate(inputs: int, classes: int, seed: int, zero: int) -> None:
    codes, weights, bias, _ = operands(seed, inputs, classes)
    logits = np.zeros(classes, np.int32)
    call_all(
        "tf_head_forward",
        [
            head(inputs, classes, zero),
            codes.astype(np.int8),
            weights.astype(np.int16),
            bias.astype(np.int32),
            logits,
        ],
    )
    expected = np.clip(weights @ (codes - zero) + bias, -INT32_MAX, INT32_MAX)
    np.testing.assert_array_equal(logits, expected)


@examples(80)
@given(INPUTS, CLASSES, SEEDS, st.integers(1, 32767))
def test_input_gradient_keeps_fifteen_bits_of_the_largest(
    inputs: int, classes: int, seed: int, multiplier: int
) -> None:
    _, weights, _, errors = operands(seed, inputs, classes)
    out, scale = np.zeros(inputs, np.int16), Struct(("i", 0), ("i", 0))
    given_scale = Struct(("i", -20), ("i", int(np.abs(errors).max())))
    layer = head(inputs, classes, 0, multiplier)
    call_all(
        "tf_head_input_gradient",
        [layer, errors.astype(np.int16), given_scale, weights.astype(np.int16), out, scale],
    )
    sums = errors @ weights * multiplier
    shift = int(np.abs(sums).max()).bit_length() - 15
    expected = np.clip(round_shift(sums, shift), -32767, 32767)
    np.testing.assert_array_equal(out, expected)
    assert scale.values == [-20 - 4 - 15 + shift, int(np.abs(expected).max())]


@examples(80)
@given(
    INPUTS,
    CLASSES,
    SEEDS,
    st.integers(-128, 127),
    st.integers(0, 2**20),
    st.booleans(),
    st.booleans(),
)
def test_weights_and_biases_take_a_step(
    inputs: int, classes: int, seed: int, zero: int, rate: int, keeps_velocity: bool, apply: bool
) -> None:
    codes, before, bias_before, errors = operands(seed, inputs, classes)
    weights, bias = before.astype(np.int16), bias_before.astype(np.int32)
    velocity = before * 1000 if keeps_velocity else None
    bias_velocity = errors * 1000 if keeps_velocity else None
    kept = None if velocity is None else velocity.astype(np.int32)
    bias_kept = None if bias_velocity is None else bias_velocity.astype(np.int32)
    call_all(
        "tf_head_update",
        [
            head(inputs, classes, zero),
            errors.astype(np.int16),
            Struct(("i", -3), ("i", int(np.abs(errors).max()))),
            codes.astype(np.int8),
            weights,
            whole(kept),
            bias,
            whole(bias_kept),
            update(rate, 200, apply),
        ],
    )
    gradient, gain = np.outer(errors, codes - zero), step_gain(WEIGHT_GAIN, rate)
    change = apply_gain(gradient, gain, -3 + STATE_BITS)
    after, left = moved(before, change, STATE_BITS, velocity, 200, apply)
    np.testing.assert_array_equal(weights, np.clip(after, -32512, 32512))
    if left is not None:
        np.testing.assert_array_equal(kept, left)
    change = apply_gain(errors, step_gain(BIAS_GAIN, rate), -3 + BIAS_BITS)
    after, left = moved(bias_before, change, BIAS_BITS, bias_velocity, 200, apply)
    if left is not None:
        np.testing.assert_array_equal(bias_kept, left)
    np.testing.assert_array_equal(bias, np.clip(after, -INT32_MAX, INT32_MAX))
