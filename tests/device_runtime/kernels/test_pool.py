"""Global average pooling against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all

PIXELS = st.one_of(st.integers(1, 20), st.sampled_from([49, 64, 256, 1000]))
CHANNELS = st.integers(1, 21)
SEEDS = st.integers(0, 2**20)


def pooling(pixels: int, channels: int, multiplier: int) -> Struct:
    """tf_pooling."""
    return Struct(("H", pixels), ("H", channels), ("h", multiplier), ("b", -4))


@examples(100)
@given(PIXELS, CHANNELS, SEEDS)
def test_mean_is_rounded_with_halves_to_even(pixels: int, channels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    low, high = np.sort(draw.integers(-128, 128, (2, channels)), axis=0)
    codes = draw.integers(low, high + 1, (pixels, channels))
    output = np.zeros(channels, np.int8)
    call_all("tf_pool_forward", [pooling(pixels, channels, 1), codes.astype(np.int8), output])
    total = codes.sum(axis=0)
    floor, rest = total // pixels, 2 * (total % pixels)
    up = (rest > pixels) | ((rest == pixels) & (floor % 2 == 1))
    np.testing.assert_array_equal(output, floor + up)


@examples(60)
@given(PIXELS, CHANNELS, SEEDS, st.integers(1, 2**14))
def test_every_pixel_gets_its_share_of_the_error(
    pixels: int, channels: int, seed: int, multiplier: int
) -> None:
    codes = np.random.default_rng(seed).integers(-32767, 32768, channels)
    out, scale = np.zeros((pixels, channels), np.int16), Struct(("i", 0), ("i", 0))
    given_scale = Struct(("i", 6), ("i", int(np.abs(codes).max())))
    layer = pooling(pixels, channels, multiplier)
    call_all("tf_pool_input_gradient", [layer, codes.astype(np.int16), given_scale, out, scale])
    expected = round_shift(codes * multiplier, 14)
    np.testing.assert_array_equal(out, np.broadcast_to(expected, out.shape))
    assert scale.values == [2, int(np.abs(expected).max())]
