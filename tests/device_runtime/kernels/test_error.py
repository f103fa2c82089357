"""Error tensors against numpy, on this machine and on emulated cores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from codegen.arithmetic.integers import round_shift
from simulator.machines.kernel_call import Struct
from tests.conftest import examples
from tests.device_runtime.kernels.calls import Ints, call_all
from tests.device_runtime.kernels.error_case import headroom_of, magnitude, scale_of

SIZES = st.integers(1, 200)
SEEDS = st.integers(0, 2**20)


def errors(seed: int, size: int, bits: int) -> Ints:
    """Codes of at most ``bits`` bits, many of them zero or at the ends."""
    draw = np.random.default_rng(seed)
    largest = (1 << bits) - 1
    codes = draw.integers(-largest, largest + 1, size)
    ends = draw.choice([-largest, 0, largest], size)
    return np.where(draw.random(size) < 0.2, ends, codes)


@examples(100)
@given(SIZES, SEEDS, st.integers(0, 15), st.sampled_from([0.02, 0.5, 0.98]))
def test_errors_behind_an_active_clamp_become_zero(
    size: int, seed: int, bits: int, share: float
) -> None:
    codes = errors(seed, size, bits)
    passed = np.random.default_rng(seed + 1).random(size) < share
    masked, scale = codes.astype(np.int16), scale_of(codes, -5)
    mask = np.packbits(passed, bitorder="little")
    call_all("tf_error_mask", [masked, scale, mask, size])
    np.testing.assert_array_equal(masked, codes * passed)
    assert scale.values == [-5, magnitude(codes * passed)]


@examples(150)
@given(SIZES, SEEDS, st.integers(0, 15), st.integers(0, 15), st.integers(-40, 40))
def test_errors_of_both_branches_are_added_as_real_values(
    size: int, seed: int, a_bits: int, b_bits: int, difference: int
) -> None:
    a, b = errors(seed, size, a_bits), errors(seed + 1, size, b_bits)
    summed, scale = a.astype(np.int16), scale_of(a, -7)
    call_all(
        "tf_error_sum", [summed, scale, b.astype(np.int16), scale_of(b, -7 + difference), size]
    )
    exponents = {"a": -7, "b": -7 + difference}
    largest = {"a": magnitude(a), "b": magnitude(b)}
    if largest["b"] == 0:
        np.testing.assert_array_equal(summed, a)
        return
    exponent = max(exponents[n] + largest[n].bit_length() for n in "ab" if largest[n] > 0) - 14

    def moved(codes: Ints, own: int) -> Ints:
        shift = exponent - own
        if not codes.any() or shift > 30:
            return np.zeros_like(codes)
        return round_shift(codes, shift)

    expected = np.clip(moved(a, exponents["a"]) + moved(b, exponents["b"]), -32767, 32767)
    np.testing.assert_array_equal(summed, expected)
    assert scale.values == [exponent, magnitude(expected)]


@examples(100)
@given(SIZES, SEEDS, st.integers(0, 15), st.integers(0, 32767), st.booleans())
def test_scaling_uses_the_headroom(
    size: int, seed: int, bits: int, multiplier: int, in_place: bool
) -> None:
    codes = errors(seed, size, bits)
    given_codes, scale = codes.astype(np.int16), scale_of(codes, 3)
    out = given_codes if in_place else np.zeros(size, np.int16)
    out_scale = scale if in_place else Struct(("i", 0), ("i", 0))
    call_all("tf_error_scale", [given_codes, scale, multiplier, -2, size, out, out_scale])
    headroom = headroom_of(codes)
    expected = round_shift(codes * multiplier, 15 - headroom)
    np.testing.assert_array_equal(out, expected)
    assert out_scale.values == [3 - 2 - headroom, magnitude(expected)]
