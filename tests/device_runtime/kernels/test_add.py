"""tf_add_forward against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all

ZERO = st.integers(-128, 127)


@pytest.mark.parametrize("place", ["own", "a", "b"])
@examples(80)
@given(
    st.integers(1, 100),
    st.integers(0, 2**20),
    st.tuples(ZERO, ZERO, ZERO),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.integers(1, 23),
    st.booleans(),
)
def test_sum_and_mask_are_those_of_the_specification(
    place: str,
    size: int,
    seed: int,
    zeros: tuple[int, int, int],
    factors: tuple[float, float],
    shift: int,
    masked: bool,
) -> None:
    draw = np.random.default_rng(seed)
    a, b = (draw.integers(-128, 128, size) for _ in range(2))
    a_multiplier, b_multiplier = (round(f * 2**22) for f in factors)
    layer = Struct(
        *(("h", zero) for zero in zeros),
        ("i", a_multiplier),
        ("i", b_multiplier),
        ("B", shift),
        ("h", 0),
        ("h", 0),
        ("b", 0),
        ("b", 0),
    )
    a_codes, b_codes = a.astype(np.int8), b.astype(np.int8)
    output = {"own": np.zeros(size, np.int8), "a": a_codes, "b": b_codes}[place]
    mask = np.full(-(-size // 8), 0x55, np.uint8)
    call_all("tf_add_forward", [layer, a_codes, b_codes, output, mask if masked else None, size])
    total = (a - zeros[0]) * a_multiplier + (b - zeros[1]) * b_multiplier
    values = round_shift(total, shift) + zeros[2]
    clamped = np.clip(values, -128, 127)
    np.testing.assert_array_equal(output, clamped)
    if masked:
        np.testing.assert_array_equal(mask, np.packbits(clamped == values, bitorder="little"))
