"""Additions: no sum that their constants allow leaves 32 bits."""

from hypothesis import example, given
from hypothesis import strategies as st

from codegen.arithmetic.layers import INT32_MAX
from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.add import Add, addition_arithmetic

SCALES = st.floats(1e-6, 1e3)


@given(a=SCALES, b=SCALES, out=SCALES)
@example(a=0.00195, b=0.00195, out=1.0)  # large factors beside a large rounding bit
def test_sums_of_additions_fit_32_bits_for_any_scales(a: float, b: float, out: float) -> None:
    shape = (1, 1, 4)
    tensors = {
        name: Tensor(name, shape, scale, 0) for name, scale in (("a", a), ("b", b), ("y", out))
    }
    op = Add("sum", ("a", "b"), "y")
    try:
        constants = addition_arithmetic(Graph("g", "a", tensors, (op,)), op)
    except ModelError:
        return  # refused, which is as good
    largest = 255 * (constants.a_multiplier + constants.b_multiplier)
    assert largest + (1 << (constants.shift - 1)) <= INT32_MAX
