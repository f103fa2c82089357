"""tf_bias_update against numpy, on this machine and on emulated cores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import BIAS_BITS, apply_gain, step_gain
from codegen.arithmetic.layers import Gain
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all, moved, update, whole
from tests.device_runtime.kernels.convolution_layers import Depthwise, depthwise_layers


@examples(120)
@given(
    depthwise_layers(),
    st.integers(1, 40),
    st.integers(0, 2**20),
    st.integers(-30, 10),
    st.booleans(),
    st.integers(0, 255),
    st.booleans(),
)
def test_biases_take_a_step_against_the_errors_sum(
    layer: Depthwise,
    channels: int,
    rate: int,
    exponent: int,
    keeps_velocity: bool,
    momentum_q8: int,
    apply: bool,
) -> None:
    layer = replace(layer, channels=channels)
    errors, before = layer.errors(), layer.biases()
    bias = before.astype(np.int32)
    velocity = before * 12345 % 2**31 if keeps_velocity else None
    kept = None if velocity is None else velocity.astype(np.int32)
    scale = Struct(("i", exponent), ("i", int(np.abs(errors).max())))
    step = update(rate, momentum_q8, apply)
    arguments = [layer.struct(), errors.astype(np.int16), scale, bias, whole(kept), step]
    call_all("tf_bias_update", arguments)
    gradient = errors.sum(axis=(0, 1))
    change = np.zeros_like(gradient)
    for channel, word in enumerate(layer.weight_gain):
        gain = Gain(int(word) >> 8, (int(word) & 0xFF) - (256 if word & 0x80 else 0))
        part = gradient[channel : channel + 1]
        change[channel] = apply_gain(part, step_gain(gain, rate), exponent + BIAS_BITS)[0]
    after, left = moved(before, change, BIAS_BITS, velocity, momentum_q8, apply)
    np.testing.assert_array_equal(bias, np.clip(after, -layer.bias_limit, layer.bias_limit))
    if left is not None:
        np.testing.assert_array_equal(kept, left)
