"""Max pools against numpy, on this machine and on an emulated Cortex-M7."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen import interpreter_pools
from codegen.integer_arithmetic import round_shift
from codegen.ir import MaxPool
from codegen.pool_arithmetic import overlap_bits
from simulator.kernel_call import Struct
from tests.device_runtime.kernels.calls import call_both
from tests.device_runtime.kernels.pool_case import error_codes, pool_case, scale_of

SEEDS = st.integers(0, 2**20)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_largest_of_each_window_is_kept_and_its_error_returns_to_the_first(seed: int) -> None:
    case = pool_case(seed, largest=True)
    op, source, output = case.op, case.source, case.output
    assert isinstance(op, MaxPool)
    window, codes = Struct(*case.window_fields()), case.codes(seed)
    found = np.zeros(output.shape, np.int8)
    places = np.zeros(output.size, np.uint8)
    call_both("tf_max_pool_forward", [window, codes, found, places])
    largest, expected_places = interpreter_pools.max_pool(
        op, source, output, codes.astype(np.int64)
    )
    np.testing.assert_array_equal(found, largest)

    errors = error_codes(output.shape, seed)
    out, scale = np.zeros(source.shape, np.int16), Struct(("i", 0), ("i", 0))
    call_both(
        "tf_max_pool_input_gradient", [window, errors, scale_of(errors, -3), places, out, scale]
    )
    headroom = 15 - int(np.abs(errors.astype(int)).max()).bit_length()
    shift = max(0, overlap_bits(op) - headroom)
    moved = round_shift(errors.astype(np.int64), shift)
    expected = interpreter_pools.max_pool_errors(source, moved, expected_places)
    np.testing.assert_array_equal(out, expected)
    assert scale.values == [-3 + shift, int(np.abs(expected).max())]


def test_without_a_place_for_them_no_places_are_written() -> None:
    case = pool_case(5, largest=True)
    found = np.zeros(case.output.shape, np.int8)
    call_both("tf_max_pool_forward", [Struct(*case.window_fields()), case.codes(5), found, None])
    assert found.any()
