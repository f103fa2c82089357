"""Products against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import requantized, round_shift
from codegen.graph.ir import Graph, Tensor
from codegen.operators.broadcast import summed, to_codes
from codegen.operators.product import Product, product_arithmetic
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.broadcast_case import ONES, SHAPES, broadcast, small_shape
from tests.device_runtime.kernels.calls import Scratch, call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of


@examples(60)
@given(
    whole=SHAPES,
    ones=ONES,
    zeros=st.tuples(*[st.integers(-128, 127)] * 3),
    ratio=st.floats(-14, 4),
    seed=st.integers(0, 999),
)
def test_products_and_the_errors_of_both_sides(
    whole: tuple[int, int, int],
    ones: tuple[bool, ...],
    zeros: tuple[int, int, int],
    ratio: float,
    seed: int,
) -> None:
    small = small_shape(whole, ones)
    op = Product("gate", ("a", "b"), "y")
    tensors = {
        "a": Tensor("a", whole, 1.0, zeros[0]), "b": Tensor("b", small, 2.0**ratio, zeros[1]),
        "y": Tensor("y", whole, 1.0, zeros[2]),
    }  # fmt: skip
    by = product_arithmetic(Graph("case", "a", tensors, (op,)), op)
    layer = Struct(
        *broadcast(small, whole, by.sum_shift), *(("h", zero) for zero in zeros), ("i", by.word),
        ("B", by.pre_shift), ("h", by.error_multiplier), ("b", by.error_exponent),
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    a, b = (draw.integers(-128, 128, shape).astype(np.int8) for shape in (whole, small))
    left, right = a.astype(np.int64) - zeros[0], b.astype(np.int64) - zeros[1]
    values = requantized(left * right, by.pre_shift, np.array(by.word)) + zeros[2]
    exact = left * right * 2.0**ratio + zeros[2]
    near = np.abs(exact) < 1000
    assert np.abs(values - exact)[near].max(initial=0) <= 0.51
    codes, mask = np.zeros(whole, np.int8), np.zeros(-(-a.size // 8), np.uint8)
    call_all("tf_product_forward", [layer, a, b, codes, mask])
    np.testing.assert_array_equal(codes, np.clip(values, -128, 127))
    kept = np.unpackbits(mask, bitorder="little")[: a.size].reshape(whole)
    np.testing.assert_array_equal(kept, codes == values)

    errors = error_codes(whole, seed)
    headroom = headroom_of(errors)
    raised = errors.astype(np.int64) << headroom
    out, scale = np.zeros(whole, np.int16), Struct(("i", 0), ("i", 0))
    call_all(
        "tf_product_input_gradient",
        [layer, errors, scale_of(errors, -9), b, zeros[1], out, scale],
    )
    wanted = round_shift(raised * right * by.error_multiplier, 23)
    np.testing.assert_array_equal(out, wanted)
    assert scale.values == [-1 - headroom + by.error_exponent, int(np.abs(wanted).max())]

    sums = summed(round_shift(raised * left, by.sum_shift), small)
    assert np.abs(sums).max() < 2**31
    wanted, power = to_codes(sums, by.error_multiplier)
    assert np.abs(wanted).max() <= 32767
    out = np.zeros(small, np.int16)
    call_all(
        "tf_product_reduced_gradient",
        [layer, errors, scale_of(errors, -9), a, out, scale, Scratch(4 * out.size)],
    )
    np.testing.assert_array_equal(out, wanted)
    exponent = -9 - headroom + by.sum_shift + by.error_exponent + power
    assert scale.values == [exponent, int(np.abs(wanted).max())]
