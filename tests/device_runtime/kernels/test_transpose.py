"""Elements in another order against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from codegen.operators.transpose import Transpose, transpose_arithmetic
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, scale_of

ORDERED = st.lists(st.integers(1, 5), min_size=1, max_size=6).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.permutations(range(len(sizes))))
)


@examples(60)
@given(case=ORDERED)
@example(case=([3, 4, 5], [0, 1, 2]))
@example(case=([2] * 8, [7, 6, 5, 4, 3, 2, 1, 0]))
def test_elements_are_ordered_and_their_errors_go_back(case: tuple[list[int], list[int]]) -> None:
    sizes, order = case
    op = Transpose("t", "x", "y", tuple(sizes), tuple(order), (int(np.prod(sizes)), 1, 1))
    by = transpose_arithmetic(op)
    layer = Struct(
        ("I", by.run), ("B", len(by.counts)), ("P", np.array(by.counts, np.uint16)),
        ("P", np.array(by.strides, np.uint32)),
    )  # fmt: skip
    source = np.random.default_rng(len(sizes)).integers(-128, 128, sizes).astype(np.int8)
    found = np.zeros(source.size, np.int8)
    call_all("tf_transpose_forward", [layer, source, found])
    np.testing.assert_array_equal(found, source.transpose(order).reshape(-1))

    errors = error_codes((source.size,), len(sizes))
    moved = errors.reshape([sizes[axis] for axis in order])
    before, scale = scale_of(errors, -9), Struct(("i", 0), ("i", 0))
    out = np.full(sizes, 99, np.int16)
    call_all("tf_transpose_input_gradient", [layer, errors, before, out, scale])
    np.testing.assert_array_equal(out, moved.transpose(np.argsort(order)))
    assert scale.values == before.values
