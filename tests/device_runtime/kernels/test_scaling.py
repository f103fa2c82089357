"""Gains and shifts by constants against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.graph.ir import Graph, Tensor
from codegen.operators.scaling import Scaling, scaling_arithmetic
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.broadcast_case import ONES, SHAPES, broadcast, small_shape
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of


@examples(60)
@given(
    whole=SHAPES,
    ones=ONES,
    bends=st.booleans(),
    zeros=st.tuples(*[st.integers(-128, 127)] * 2),
    spread=st.floats(-9, 6),
    seed=st.integers(0, 999),
)
def test_codes_and_errors_are_scaled_by_their_constants(
    whole: tuple[int, int, int],
    ones: tuple[bool, ...],
    bends: bool,
    zeros: tuple[int, int],
    spread: float,
    seed: int,
) -> None:
    small = small_shape(whole, ones)
    draw = np.random.default_rng(seed)
    gain, shift, below = draw.normal(0, 2.0**spread, (3, int(np.prod(small))))
    op = Scaling(
        "scaled", "x", "y", small, tuple(gain), tuple(shift), tuple(below) if bends else None
    )
    tensors = {"x": Tensor("x", whole, 0.05, zeros[0]), "y": Tensor("y", whole, 0.04, zeros[1])}
    by = scaling_arithmetic(Graph("case", "x", tensors, (op,)), op)

    def table(values: np.ndarray | None, dtype: type) -> tuple[str, np.ndarray | None]:
        return "P", None if values is None else values.reshape(-1).astype(dtype)

    layer = Struct(
        *broadcast(small, whole, 0),
        table(by.multiplier, np.int32), table(by.offset, np.int32), table(by.below, np.int32),
        table(by.error_multiplier, np.int16), table(by.error_below, np.int16),
        ("h", zeros[0]), ("h", zeros[1]), ("B", by.shift), ("b", by.error_exponent),
    )  # fmt: skip
    source = draw.integers(-128, 128, whole).astype(np.int8)
    steps = source.astype(np.int64) - zeros[0]
    factors, errors_of = by.multiplier, by.error_multiplier
    if by.below is not None:
        factors = np.where(steps < 0, by.below, factors)
        errors_of = np.where(steps < 0, by.error_below, errors_of)
    total = steps * factors + by.offset
    assert np.abs(total).max() + (1 << by.shift) < 2**31
    values = round_shift(total, by.shift) + zeros[1]
    codes, mask = np.zeros(whole, np.int8), np.zeros(-(-source.size // 8), np.uint8)
    call_all("tf_scaling_forward", [layer, source, codes, mask])
    np.testing.assert_array_equal(codes, np.clip(values, -128, 127))
    kept = np.unpackbits(mask, bitorder="little")[: source.size].reshape(whole)
    np.testing.assert_array_equal(kept, codes == values)

    errors = error_codes(whole, seed)
    headroom = headroom_of(errors)
    wanted = round_shift(errors.astype(np.int64) * errors_of, 15 - headroom)
    out, scale = np.zeros(whole, np.int16), Struct(("i", 0), ("i", 0))
    call_all("tf_scaling_input_gradient", [layer, errors, scale_of(errors, -9), source, out, scale])
    np.testing.assert_array_equal(out, wanted)
    assert scale.values == [-9 + by.error_exponent - headroom, int(np.abs(wanted).max())]
