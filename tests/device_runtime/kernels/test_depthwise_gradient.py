"""Depthwise gradients against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from codegen.arithmetic.integers import STATE_BITS, STEP_BITS, apply_gain, step_gain
from codegen.arithmetic.layers import Gain
from codegen.program.scratch import depthwise_input_gradient_bytes, depthwise_weight_update_bytes
from simulator.machines.kernel_call import Struct, View
from tests.conftest import examples
from tests.device_runtime.kernels.calls import FIRST_VALUE, Scratch, call_all, moved, update
from tests.device_runtime.kernels.convolution_layers import Depthwise, depthwise_layers
from tests.device_runtime.kernels.error_case import scale_of

PLAIN = Depthwise(8, 8, 4, (3, 3), (1, 1), (1, 1, 1, 1), -128, -128, False, 9, 0, 1)
SEVEN = Depthwise(8, 8, 3, (7, 7), (2, 2), (3, 3, 3, 3), -128, 5, False, 9, 0, 2)
UNSEEN = Depthwise(1, 1, 5, (3, 3), (3, 3), (7, 7, 0, 0), 9, -128, False, 4, 0, 2)
"""No window meets the image."""
ONE_TAP = Depthwise(5, 4, 4, (1, 1), (1, 1), (0, 0, 1, 2), 9, -128, False, 4, 0, 3)
"""Padding at the bottom and the right only."""
SPEECH = Depthwise(12, 9, 2, (10, 4), (2, 2), (4, 1, 5, 1), 0, -128, True, 9, 0, 3)
SPARSE = Depthwise(7, 7, 2, (1, 1), (3, 3), (0, 0, 0, 0), 0, -128, False, 4, 3, 3)


@examples(200)
@given(depthwise_layers())
@example(PLAIN)
@example(SEVEN)
@example(SPEECH)
@example(SPARSE)
@example(UNSEEN)
@example(ONE_TAP)
def test_input_gradient_is_that_of_the_specification(layer: Depthwise) -> None:
    errors = layer.errors()
    expected, exponent = layer.input_gradient(errors)
    out, scale = np.zeros(expected.shape, np.int16), Struct(("i", 0), ("i", 0))
    call_all(
        "tf_depthwise_input_gradient",
        [
            layer.struct(),
            errors.astype(np.int16),
            scale_of(errors, -9),
            layer.weights_struct(),
            out,
            scale,
            Scratch(depthwise_input_gradient_bytes(layer.op, layer.source, layer.target)),
        ],
    )
    np.testing.assert_array_equal(out, expected)
    assert scale.values == [-9 + exponent, int(np.abs(expected).max())]


@examples(80)
@given(depthwise_layers())
@example(PLAIN)
@example(SEVEN)
@example(SPARSE)
def test_input_gradient_may_end_where_the_error_ends(layer: Depthwise) -> None:
    errors = layer.errors()
    wanted = layer.input_gradient(errors)[0]
    behind = max(0, wanted.size - errors.size)
    memory, scale = np.zeros(behind + errors.size, np.int16), scale_of(errors, -9)
    memory[behind:] = errors.ravel()
    call_all(
        "tf_depthwise_input_gradient",
        [
            layer.struct(),
            View(memory, behind),
            scale,
            layer.weights_struct(),
            memory,
            scale,
            Scratch(depthwise_input_gradient_bytes(layer.op, layer.source, layer.target)),
        ],
    )
    np.testing.assert_array_equal(memory[: wanted.size].reshape(wanted.shape), wanted)


@examples(150)
@given(depthwise_layers(), st.booleans(), st.integers(0, 2**20), st.booleans(), st.booleans())
@example(PLAIN, True, 2**14, False, True)
@example(SEVEN, False, 2**14, True, True)
@example(SPARSE, False, 2**14, False, True)
@example(UNSEEN, True, 2**14, False, True)
@example(ONE_TAP, True, 2**14, False, True)
def test_trained_channels_take_a_step(
    layer: Depthwise, exact: bool, rate: int, keeps_velocity: bool, apply: bool
) -> None:
    errors, codes, trained = layer.errors(), layer.codes(layer.height, layer.width), layer.trained()
    keeps_part = layer.seed % 2 == 1  # only the trained channels of the input
    before = np.ascontiguousarray(layer.weights()[..., trained])
    fractions = np.random.default_rng(layer.seed).integers(-128, 128, before.shape)
    fractions[np.abs(before) == 127] = 0
    weights, fraction_codes = before.astype(np.int8), fractions.astype(np.int8)
    velocity = before * 1000 if keeps_velocity else None
    kept = None if velocity is None else velocity.astype(np.int32)
    call_all(
        "tf_depthwise_weight_update",
        [
            layer.struct(),
            errors.astype(np.int16),
            scale_of(errors, -9),
            np.ascontiguousarray(codes[..., trained] if keeps_part else codes).astype(np.int8),
            Struct(
                ("P", weights),
                ("P", fraction_codes if exact else None),
                ("P", kept),
                ("I", FIRST_VALUE),
                ("P", trained.astype(np.uint16)),
                ("H", len(trained)),
                ("H", len(trained) if keeps_part else codes.shape[-1]),
            ),
            update(rate, 200, apply),
            Scratch(depthwise_weight_update_bytes(layer.op, layer.source, layer.target)),
        ],
    )
    gradient = layer.weight_gradient(codes, errors)[..., trained]
    bits = STATE_BITS if exact else STEP_BITS
    exponent = -9 + layer.gradient_shift + bits + (8 if exact else 0)
    change = np.zeros_like(gradient)
    for at, channel in enumerate(trained):
        word = int(layer.weight_gain[channel])
        gain = Gain(word >> 8, (word & 0xFF) - (256 if word & 0x80 else 0))
        change[..., at] = apply_gain(gradient[..., at], step_gain(gain, rate), exponent)
    start = before * 256 + fractions if exact else before
    after, left = moved(start, change, bits, velocity, 200, apply)
    if left is not None:
        np.testing.assert_array_equal(kept, left)
    if not exact:
        np.testing.assert_array_equal(weights, np.clip(after, -127, 127))
        return
    state = np.clip(after, -32512, 32512)
    rounded = (state + 128) >> 8
    np.testing.assert_array_equal(fraction_codes, state - rounded * 256)
    np.testing.assert_array_equal(weights, rounded)
