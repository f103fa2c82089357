"""Max pools against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.graph.floats import window_output_shape
from codegen.graph.ir import Graph, Padding, Tensor
from codegen.operators.max_pool import MaxPool, max_pool, max_pool_errors
from codegen.operators.windows import overlap_bits
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of
from tests.device_runtime.kernels.pool_case import PoolCase, pool_case

SEEDS = st.integers(0, 2**20)


@examples(60)
@given(SEEDS)
def test_the_largest_of_each_window_is_kept_and_its_error_returns_to_the_first(seed: int) -> None:
    check(pool_case(seed, largest=True), seed)


@pytest.mark.parametrize("window", [(16, 16), (17, 16), (3, 100)])
def test_places_in_windows_of_more_than_256_positions_take_two_bytes(
    window: tuple[int, int],
) -> None:
    check(largest_of_windows(window, (20, 101, 2)), seed=4)


def largest_of_windows(window: tuple[int, int], shape: tuple[int, int, int]) -> PoolCase:
    """A pool with a stride of 3 over an input of ``shape``, in which no code occurs often."""
    op = MaxPool("pool", "x", "y", window, (3, 3), Padding())
    size = window_output_shape(window, op.stride, op.padding, shape[:2])
    tensors = {"x": Tensor("x", shape, 1.0, 0), "y": Tensor("y", (*size, shape[2]), 1.0, 0)}
    return PoolCase(op, Graph("case", "x", tensors, (op,)))


def check(case: PoolCase, seed: int) -> None:
    op, source, output = case.op, case.source, case.output
    assert isinstance(op, MaxPool)
    window, codes = Struct(*case.window_fields()), case.codes(seed)
    found = np.zeros(output.shape, np.int8)
    places = np.zeros(output.size * (2 if np.prod(op.window) > 256 else 1), np.uint8)
    call_all("tf_max_pool_forward", [window, codes, found, places])
    largest, expected_places = max_pool(case.graph, op, codes.astype(np.int64))
    np.testing.assert_array_equal(found, largest)

    errors = error_codes(output.shape, seed)
    out, scale = np.zeros(source.shape, np.int16), Struct(("i", 0), ("i", 0))
    call_all(
        "tf_max_pool_input_gradient", [window, errors, scale_of(errors, -3), places, out, scale]
    )
    headroom = headroom_of(errors)
    shift = max(0, overlap_bits(op) - headroom)
    moved = round_shift(errors.astype(np.int64), shift)
    expected = max_pool_errors(source, moved, expected_places)
    np.testing.assert_array_equal(out, expected)
    assert scale.values == [-3 + shift, int(np.abs(expected).max())]


def test_without_a_place_for_them_no_places_are_written() -> None:
    case = pool_case(5, largest=True)
    found = np.zeros(case.output.shape, np.int8)
    call_all("tf_max_pool_forward", [Struct(*case.window_fields()), case.codes(5), found, None])
    assert found.any()
