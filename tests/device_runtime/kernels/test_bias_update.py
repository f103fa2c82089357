"""tf_bias_update against numpy, on this machine and on an emulated Cortex-M7."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.interpreter import apply_gain, step_gain
from codegen.layer_arithmetic import Gain
from simulator.kernel_call import Struct
from tests.device_runtime.kernels.calls import call_both
from tests.device_runtime.kernels.convolution_layers import Depthwise, depthwise_layers


@settings(max_examples=120, deadline=None)
@given(depthwise_layers(), st.integers(1, 40), st.integers(0, 2**20), st.integers(-30, 10))
def test_biases_take_a_step_against_the_errors_sum(
    layer: Depthwise, channels: int, rate: int, exponent: int
) -> None:
    layer = replace(layer, channels=channels)
    errors, before = layer.errors(), layer.biases()
    bias = before.astype(np.int32)
    scale = Struct(("i", exponent), ("i", int(np.abs(errors).max())))
    update = Struct(("I", rate), ("I", 17), ("I", 3))
    call_both("tf_bias_update", [layer.struct(), errors.astype(np.int16), scale, bias, update])
    gradient = errors.sum(axis=(0, 1))
    for channel, word in enumerate(layer.weight_gain):
        gain = Gain(int(word) >> 8, (int(word) & 0xFF) - (256 if word & 0x80 else 0))
        change = apply_gain(gradient[channel : channel + 1], step_gain(gain, rate), exponent)
        expected = np.clip(before[channel] - change[0], -layer.bias_limit, layer.bias_limit)
        assert bias[channel] == expected
