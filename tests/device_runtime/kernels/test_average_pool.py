"""Average pools against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.operators.average_pool import (
    AVERAGE_POOL,
    AveragePool,
    average_pool_arithmetic,
    average_pool_errors,
    window_counts,
)
from codegen.operators.windows import overlap_bits
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of
from tests.device_runtime.kernels.pool_case import PoolCase, pool_case

SEEDS = st.integers(0, 2**20)


def layer_of(case: PoolCase) -> Struct:
    """tf_average_pooling."""
    op = case.op
    assert isinstance(op, AveragePool)
    constants = average_pool_arithmetic(case.graph, op)
    words = np.array([m.word for m in constants.requantize], np.int32)
    counted = op.counted
    return Struct(
        *case.window_fields(),
        *(("H", n) for n in (counted.top, counted.left, counted.bottom, counted.right)),
        ("h", case.source.zero_point),
        ("h", case.output.zero_point),
        ("i", constants.least_count),
        ("P", words if len(words) else None),
        ("B", constants.pre_shift),
        ("P", constants.error_multiplier.astype(np.int16)),
        ("b", constants.error_exponent),
    )


@examples(60)
@given(SEEDS)
def test_means_and_their_errors_are_those_of_the_specification(seed: int) -> None:
    case = pool_case(seed, largest=False)
    op, source, output = case.op, case.source, case.output
    assert isinstance(op, AveragePool)
    layer, codes = layer_of(case), case.codes(seed)
    constants = average_pool_arithmetic(case.graph, op)
    counted = window_counts(case.graph, op)
    found, mask = np.zeros(output.shape, np.int8), np.zeros(-(-output.size // 8), np.uint8)
    call_all("tf_average_pool_forward", [layer, codes, found, mask])
    exact = AVERAGE_POOL.forward(case.graph, op, [codes.astype(np.int64)])
    clamped = np.clip(exact, -128, 127)
    np.testing.assert_array_equal(found, clamped)
    bits = np.unpackbits(mask, bitorder="little")[: output.size]
    np.testing.assert_array_equal(bits, (clamped == exact).ravel())

    errors = error_codes(output.shape, seed)
    out, scale = np.zeros(source.shape, np.int16), Struct(("i", 0), ("i", 0))
    call_all("tf_average_pool_input_gradient", [layer, errors, scale_of(errors, 2), out, scale])
    headroom = headroom_of(errors)
    left = headroom - overlap_bits(op)
    factor = constants.error_multiplier[counted - constants.least_count]
    parts = round_shift(errors.astype(np.int64) * factor, 15 - left)
    expected = average_pool_errors(op, source, output, parts)
    np.testing.assert_array_equal(out, expected)
    assert np.abs(expected).max() <= 32767
    exponent = 2 + constants.error_exponent - left
    assert scale.values == [exponent, int(np.abs(expected).max())]
