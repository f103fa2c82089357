"""Repeats against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.graph.ir import Tensor
from codegen.operators.broadcast import ERROR_MAX, sum_shift, summed, to_codes
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.broadcast_case import ONES, SHAPES, broadcast, small_shape
from tests.device_runtime.kernels.calls import Scratch, call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of


@examples(40)
@given(whole=SHAPES, ones=ONES, seed=st.integers(0, 999), most=st.sampled_from([None, 3]))
def test_what_is_repeated_gets_the_sum_of_its_errors(
    whole: tuple[int, int, int], ones: tuple[bool, ...], seed: int, most: int | None
) -> None:
    small = small_shape(whole, ones)
    shift = sum_shift(Tensor("x", small, 1, 0), Tensor("y", whole, 1, 0), ERROR_MAX)
    layer = Struct(*broadcast(small, whole, shift + (most or 0)))
    source = np.random.default_rng(seed).integers(-128, 128, small).astype(np.int8)
    found = np.zeros(whole, np.int8)
    call_all("tf_expand_forward", [layer, source, found])
    np.testing.assert_array_equal(found, np.broadcast_to(source, whole))

    errors = error_codes(whole, seed)
    headroom, right = headroom_of(errors), shift + (most or 0)
    terms = round_shift(errors.astype(np.int64) << headroom, right)
    wanted, power = to_codes(summed(terms, small))
    out, scale = np.full(small, 99, np.int16), Struct(("i", 0), ("i", 0))
    scratch = Scratch(4 * out.size)
    call_all("tf_expand_input_gradient", [layer, errors, scale_of(errors, -9), out, scale, scratch])
    np.testing.assert_array_equal(out, wanted)
    assert np.abs(wanted).max() <= 32767
    assert scale.values == [-9 - headroom + right + power, int(np.abs(wanted).max())]


def test_sums_over_the_largest_pictures_fit_32_bits() -> None:
    for side in (1, 7, 16, 112, 224, 1000):
        whole, small = Tensor("y", (side, side, 3), 1, 0), Tensor("x", (1, 1, 3), 1, 0)
        for largest in (ERROR_MAX, 255 * ERROR_MAX):
            shift = sum_shift(small, whole, largest)
            term = int(round_shift(np.int64(largest), shift))
            assert term * side * side < 2**31
