"""Tables by code against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of


@examples(60)
@given(seed=st.integers(0, 2**20), size=st.integers(1, 70), in_place=st.booleans())
def test_codes_and_errors_are_looked_up(seed: int, size: int, in_place: bool) -> None:
    draw = np.random.default_rng(seed)
    codes = draw.integers(-128, 128, 256).astype(np.int8)
    slopes = draw.integers(-32767, 32768, 256).astype(np.int16)
    layer = Struct(("P", codes), ("P", slopes), ("b", -3))
    source = draw.integers(-128, 128, size).astype(np.int8)
    found = source.copy() if in_place else np.zeros(size, np.int8)
    call_all("tf_lookup_forward", [layer, found if in_place else source, found, size])
    places = source.astype(np.int64) + 128
    np.testing.assert_array_equal(found, codes[places])

    errors = error_codes((size,), seed)
    scale = scale_of(errors, 2)
    headroom = headroom_of(errors)
    expected = round_shift(errors.astype(np.int64) * slopes[places], 15 - headroom)
    out = errors if in_place else np.zeros(size, np.int16)
    made = Struct(("i", 0), ("i", 0))
    call_all("tf_lookup_input_gradient", [layer, errors, scale, source, size, out, made])
    np.testing.assert_array_equal(out, expected)
    assert made.values == [2 - 3 - headroom, int(np.abs(expected).max())]
    assert np.abs(expected).max() <= 32767
