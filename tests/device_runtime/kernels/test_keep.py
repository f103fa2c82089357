"""Kept channels against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all


@examples(20)
@given(st.data(), st.integers(1, 40), st.integers(1, 20))
def test_channels_are_kept_in_their_order(data: st.DataObject, channels: int, pixels: int) -> None:
    chosen = sorted(data.draw(st.sets(st.integers(0, channels - 1), min_size=1)))
    codes = np.random.default_rng(pixels).integers(-128, 128, (pixels, channels), np.int8)
    kept = np.zeros((pixels, len(chosen)), np.int8)
    places = np.array(chosen, np.uint16)
    call_all("tf_keep_channels", [places, len(chosen), codes, channels, pixels, kept])
    np.testing.assert_array_equal(kept, codes[:, chosen])
