"""Pixels in other places against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.graph.ir import Graph, Tensor
from codegen.operators.rearrange import OUTSIDE, REARRANGE, Rearrange, repeat_bits
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of


def random_case(seed: int) -> tuple[Graph, Rearrange]:
    """Any places, in the picture and around it, of any pixel any number of times."""
    draw = np.random.default_rng(seed)
    height, width, out_height, out_width = draw.integers(1, 7, 4).tolist()
    channels = int(draw.integers(1, 19))

    def places(most: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        by_y = draw.integers(-2, most + 1, out_height).tolist()
        by_x = draw.integers(0, most + 1, out_width).tolist()
        by_y[0] = OUTSIDE if draw.random() < 0.2 else by_y[0]
        by_x[-1] = OUTSIDE if draw.random() < 0.2 else by_x[-1]
        return tuple(by_y), tuple(by_x)

    op = Rearrange("move", "x", "y", places(height), places(width))
    x = Tensor("x", (height, width, channels), 0.02, int(draw.integers(-128, 128)))
    y = Tensor("y", (out_height, out_width, channels), x.scale, x.zero_point)
    return Graph("case", "x", {"x": x, "y": y}, (op,)), op


@examples(60)
@given(st.integers(0, 2**20))
def test_pixels_move_and_the_errors_of_copies_add_up(seed: int) -> None:
    graph, op = random_case(seed)
    source, output = graph.tensors["x"], graph.tensors["y"]
    bits = repeat_bits(op, *source.shape[:2])
    tables = (np.array(t, np.int16) for places in (op.rows, op.columns) for t in places)
    sizes = [*source.shape, *output.shape[:2]]
    layer = Struct(
        *(("H", size) for size in sizes),
        ("b", source.zero_point),
        ("B", bits),
        *(("P", table) for table in tables),
    )
    codes = np.random.default_rng(seed).integers(-128, 128, source.shape).astype(np.int8)
    found = np.zeros(output.shape, np.int8)
    call_all("tf_rearrange_forward", [layer, codes, found])
    expected = REARRANGE.forward(graph, op, [codes.astype(np.int64)])
    np.testing.assert_array_equal(found, expected)

    errors = error_codes(output.shape, seed)
    out, scale = np.zeros(source.shape, np.int16), Struct(("i", 0), ("i", 0))
    call_all("tf_rearrange_input_gradient", [layer, errors, scale_of(errors, -3), out, scale])
    shift = max(0, bits - headroom_of(errors))
    moved = round_shift(errors.astype(np.int64), shift)
    (returned,) = REARRANGE.gradients(graph, op, [codes.astype(np.int64)], moved)
    np.testing.assert_array_equal(out, returned)
    assert scale.values == [-3 + shift, int(np.abs(returned).max())]
    assert np.abs(returned).max() <= 32767
