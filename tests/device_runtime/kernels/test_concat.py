"""Concatenation against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, scale_of


@examples(40)
@given(st.integers(1, 30), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 999))
def test_parts_are_put_together_and_their_errors_taken_apart(
    pixels: int, parts: list[int], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    codes = [draw.integers(-128, 128, (pixels, part)).astype(np.int8) for part in parts]
    whole = np.zeros((pixels, sum(parts)), np.int8)
    errors = error_codes(whole.shape, seed)
    first = 0
    for part in codes:
        channels = part.shape[1]
        part_slice = Struct(("I", pixels), ("H", sum(parts)), ("H", first), ("H", channels))
        call_all("tf_concat_forward", [part_slice, part, whole])
        out, scale = np.zeros((pixels, channels), np.int16), Struct(("i", 0), ("i", 0))
        call_all("tf_concat_input_gradient", [part_slice, errors, scale_of(errors, -9), out, scale])
        expected = errors[:, first : first + channels]
        np.testing.assert_array_equal(out, expected)
        assert scale.values == [-9, int(np.abs(expected.astype(int)).max())]
        first += channels
    np.testing.assert_array_equal(whole, np.concatenate(codes, axis=1))
