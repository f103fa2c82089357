"""Changes of scale against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.errors import ModelError
from codegen.graph.ir import Graph, Tensor
from codegen.operators.requantize import Requantize, requantize_arithmetic
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all

ZEROS = st.integers(-128, 127)


def graph_of(factor: float, in_zero: int, out_zero: int) -> tuple[Graph, Requantize]:
    op = Requantize("op", "x", "y")
    tensors = {
        "x": Tensor("x", (1, 1, 1), factor, in_zero),
        "y": Tensor("y", (1, 1, 1), 1.0, out_zero),
    }
    return Graph("case", "x", tensors, (op,)), op


@examples(80)
@given(
    st.floats(0.001, 300.0),
    ZEROS,
    ZEROS,
    st.lists(st.integers(-128, 127), min_size=1, max_size=40),
    st.tuples(ZEROS, ZEROS),
)
def test_codes_are_the_nearest_ones_between_the_ends(
    factor: float, in_zero: int, out_zero: int, codes: list[int], ends: tuple[int, int]
) -> None:
    constants = requantize_arithmetic(*graph_of(factor, in_zero, out_zero))
    low, high = sorted(ends)
    layer = Struct(
        ("h", in_zero), ("h", out_zero), ("b", low), ("b", high),
        ("i", constants.requantize.word), ("B", constants.pre_shift),
        ("h", constants.error_multiplier), ("b", constants.error_exponent),
    )  # fmt: skip
    source = np.array(codes, np.int8)
    found = np.zeros(len(codes), np.int8)
    mask = np.zeros(-(-len(codes) // 8), np.uint8)
    call_all("tf_requantize_forward", [layer, source, found, mask, len(codes)])
    exact = (source.astype(float) - in_zero) * factor + out_zero
    assert (np.abs(found - np.clip(exact, low, high)) <= 0.5 + 1e-3).all()
    bits = np.unpackbits(mask, bitorder="little")[: len(codes)]
    inside = (exact > low - 0.49) & (exact < high + 0.49)
    outside = (exact < low - 0.51) | (exact > high + 0.51)
    assert bits[inside].all()
    assert not bits[outside].any()


def test_the_same_scale_leaves_every_code_as_it_is() -> None:
    constants = requantize_arithmetic(*graph_of(1.0, 5, 5))
    layer = Struct(
        ("h", 5), ("h", 5), ("b", -128), ("b", 127),
        ("i", constants.requantize.word), ("B", constants.pre_shift), ("h", 0), ("b", 0),
    )  # fmt: skip
    source = np.arange(-128, 128).astype(np.int8)
    call_all("tf_requantize_forward", [layer, source, source, None, 256])
    np.testing.assert_array_equal(source, np.arange(-128, 128))


def test_a_factor_that_leaves_32_bits_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="layer op: one step of its input"):
        requantize_arithmetic(*graph_of(2.0**21, 0, 0))
