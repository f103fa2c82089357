"""Chosen entries of an axis against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from codegen.graph.ir import Graph, Tensor
from codegen.operators.gather import Gather, PictureAxis, gather_arithmetic
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import call_all
from tests.device_runtime.kernels.error_case import error_codes, headroom_of, scale_of

AXES: tuple[PictureAxis, ...] = ("height", "width", "channels")


@examples(60)
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    place=st.integers(0, 2),
    data=st.data(),
    seed=st.integers(0, 999),
)
def test_entries_are_chosen_and_their_errors_go_back(
    shape: tuple[int, int, int], place: int, data: st.DataObject, seed: int
) -> None:
    size = shape[place]
    some = st.lists(st.integers(0, size - 1), min_size=1, max_size=9)
    runs = st.builds(lambda a, b: list(range(min(a, b), max(a, b) + 1)),
                     st.integers(0, size - 1), st.integers(0, size - 1))  # fmt: skip
    chosen = data.draw(st.one_of(some, runs, st.permutations(range(size))))
    op = Gather("choice", "x", "y", AXES[place], tuple(chosen))
    graph = Graph("case", "x", {"x": Tensor("x", shape, 0.1, 0)}, (op,))
    by = gather_arithmetic(graph, op)
    layer = Struct(
        ("I", by.outer), ("I", by.inner), ("H", by.size), ("H", by.run), ("H", len(by.first)),
        ("P", np.array(by.first, np.uint16)), ("B", by.overlap_bits),
    )  # fmt: skip
    source = np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)
    expected = np.take(source, chosen, axis=place)
    found = np.zeros(expected.shape, np.int8)
    call_all("tf_gather_forward", [layer, source, found])
    np.testing.assert_array_equal(found, expected)

    errors = error_codes(expected.shape, seed)
    headroom = headroom_of(errors)
    shift = max(0, by.overlap_bits - headroom)
    wanted = np.zeros(shape, np.int64)
    for entry, index in enumerate(chosen):
        part = np.take(errors.astype(np.int64), entry, axis=place)
        np.moveaxis(wanted, place, 0)[index] += round_shift(part, shift)
    assert np.abs(wanted).max() <= 32767
    out, scale = np.full(shape, 99, np.int16), Struct(("i", 0), ("i", 0))
    call_all("tf_gather_input_gradient", [layer, errors, scale_of(errors, -9), out, scale])
    np.testing.assert_array_equal(out, wanted)
    assert scale.values == [-9 + shift, int(np.abs(wanted).max())]
