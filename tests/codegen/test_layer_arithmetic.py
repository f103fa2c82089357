"""Constants of the arithmetic: no sum they allow leaves 32 bits."""

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codegen.errors import ModelError
from codegen.ir import Add, DepthwiseConv, Graph, Tensor
from codegen.layer_arithmetic import INT32_MAX, addition_arithmetic, convolution_arithmetic
from tests.codegen.random_graphs import random_graph

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


def test_a_layer_of_too_many_pixels_is_refused_by_name() -> None:
    graph, _ = random_graph(1)
    op = next(op for op in graph.convolutions if isinstance(op, DepthwiseConv))
    huge = dataclasses.replace(graph.tensors[op.output], shape=(400, 200, 4))
    with pytest.raises(ModelError, match=f"{op.name}: 80000 output pixels"):
        convolution_arithmetic(
            dataclasses.replace(graph, tensors={**graph.tensors, op.output: huge}), op
        )
