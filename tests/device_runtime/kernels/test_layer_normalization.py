"""Layer normalization against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import Error
from codegen.graph.ir import Graph, Tensor
from codegen.operators.layer_normalization import (
    LAYER_NORMALIZATION,
    LayerNormalization,
    input_errors,
    layer_normalization_arithmetic,
)
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, scale_of

KINDS = ("any", "one", "alike", "ends", "spike")


def codes_of(kind: str, groups: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """Codes of groups that hurt: all equal, nearly so, at both ends, one apart from the rest."""
    match kind:
        case "any":
            codes = draw.integers(-128, 128, (groups, count))
        case "one":
            codes = np.broadcast_to(draw.integers(-128, 128, (groups, 1)), (groups, count))
        case "alike":
            codes = draw.integers(-1, 1, (groups, count)) + draw.integers(-127, 128, (groups, 1))
        case "ends":
            codes = draw.choice([-128, 127], (groups, count))
        case _:
            codes = np.full((groups, count), 127)
            codes[:, -1] = -128
    return codes.astype(np.int8)


@examples(60)
@given(
    groups=st.integers(1, 5),
    count=st.sampled_from([1, 2, 3, 5, 17, 64, 65, 600]),
    kind=st.sampled_from(KINDS),
    in_zero=st.sampled_from([-128, 7, 127]),
    zero=st.integers(-128, 127),
    scales=st.tuples(*[st.floats(-9, 2)] * 2),
    epsilon=st.sampled_from([0.0, 1e-12, 1e-5, 1.0, 1e30]),
    spread=st.floats(-40, 3),
    centred=st.booleans(),
    seed=st.integers(0, 999),
)
def test_groups_are_normalized_and_so_are_their_errors(
    groups: int,
    count: int,
    kind: str,
    in_zero: int,
    zero: int,
    scales: tuple[float, float],
    epsilon: float,
    spread: float,
    centred: bool,
    seed: int,
) -> None:
    draw = np.random.default_rng(seed)
    gain, shift = draw.normal(0, 2.0**spread, (2, count))
    shape = (1, groups, count)
    op = LayerNormalization("normed", "x", "y", tuple(gain), tuple(shift), epsilon, centred)
    tensors = {
        "x": Tensor("x", shape, 2.0 ** scales[0], in_zero),
        "y": Tensor("y", shape, 2.0 ** scales[1], zero),
    }
    graph = Graph("case", "x", tensors, (op,))
    by = layer_normalization_arithmetic(graph, op)
    layer = Struct(
        ("I", groups), ("H", count), ("B", by.lift), ("B", by.bits), ("Q", by.epsilon),
        ("P", by.multiplier.astype(np.int16)), ("P", by.offset.astype(np.int32)),
        ("h", in_zero), ("h", zero), ("B", by.drop), ("B", by.shift), ("b", by.exponent),
        ("B", int(centred)),
    )  # fmt: skip
    source = codes_of(kind, groups, count, draw).reshape(shape)
    values = LAYER_NORMALIZATION.forward(graph, op, [source.astype(np.int64)])
    assert np.abs(values - zero).max() << by.shift < 2**31
    codes, mask = np.zeros(shape, np.int8), np.zeros(-(-source.size // 8), np.uint8)
    call_all("tf_layer_normalization_forward", [layer, source, codes, mask])
    np.testing.assert_array_equal(codes, np.clip(values, -128, 127))
    kept = np.unpackbits(mask, bitorder="little")[: source.size].reshape(shape)
    np.testing.assert_array_equal(kept, codes == values)

    errors = error_codes(shape, seed)
    wanted = input_errors(by, Error(errors.astype(np.int64), -9), source.astype(np.int64))
    out, scale = np.zeros(shape, np.int16), Struct(("i", 0), ("i", 0))
    call_all(
        "tf_layer_normalization_input_gradient",
        [layer, errors, scale_of(errors, -9), source, out, scale],
    )
    np.testing.assert_array_equal(out, wanted.codes)
    assert scale.values == [wanted.exponent, wanted.magnitude]


@pytest.mark.parametrize("centred", [True, False])
def test_input_and_output_may_be_one_and_the_largest_group_fits(centred: bool) -> None:
    count = 1 << 14
    draw = np.random.default_rng(3)
    gain, shift = draw.normal(1, 0.3, (2, count))
    op = LayerNormalization("normed", "x", "y", tuple(gain), tuple(shift), 1e-5, centred)
    shape = (1, 1, count)
    tensors = {"x": Tensor("x", shape, 0.05, 3), "y": Tensor("y", shape, 0.04, -8)}
    graph = Graph("case", "x", tensors, (op,))
    by = layer_normalization_arithmetic(graph, op)
    layer = Struct(
        ("I", 1), ("H", count), ("B", by.lift), ("B", by.bits), ("Q", by.epsilon),
        ("P", by.multiplier.astype(np.int16)), ("P", by.offset.astype(np.int32)),
        ("h", 3), ("h", -8), ("B", by.drop), ("B", by.shift), ("b", by.exponent),
        ("B", int(centred)),
    )  # fmt: skip
    for kind in KINDS:
        source = codes_of(kind, 1, count, draw).reshape(shape)
        values = LAYER_NORMALIZATION.forward(graph, op, [source.astype(np.int64)])
        codes = source.copy()
        call_all("tf_layer_normalization_forward", [layer, codes, codes, None])
        np.testing.assert_array_equal(codes, np.clip(values, -128, 127))
        errors = np.where(source < 0, -32767, 32767).astype(np.int16)
        wanted = input_errors(by, Error(errors.astype(np.int64), -9), source.astype(np.int64))
        size, scale = scale_of(errors, -9), Struct(("i", 0), ("i", 0))
        call_all(
            "tf_layer_normalization_input_gradient", [layer, errors, size, source, errors, scale]
        )
        np.testing.assert_array_equal(errors, wanted.codes)
