import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from codegen.scratch import round_up
from simulator.kernel_call import ArmKernels, HostKernels, Struct
from tests.device_runtime.kernels.convolution_case import Case, cases, packed, unpacked

Engines = list[HostKernels | ArmKernels]
FIRST_VALUE, SEED, STEP = 77, 0xDEADBEEF, 5
RATE = 26214  # 0.025


def check(
    engines: Engines, case: Case, error: np.ndarray, exponent: int, *, exact: bool
) -> np.ndarray:
    """Weights after the update, which are numpy's on every engine."""
    weights = case.weights[..., list(case.trained)]
    fractions = case.values(-128, 127, *weights.shape) if exact else None
    wanted, wanted_fractions = case.updated(
        error, exponent, fractions, RATE, (FIRST_VALUE, SEED, STEP)
    )
    for engine in engines:
        made = packed(weights)
        made_fractions = None if fractions is None else packed(fractions)
        engine.call(
            "tf_convolution_weight_update",
            case.layer,
            error,
            Struct(("i", exponent), ("i", int(np.abs(error.astype(np.int64)).max()))),
            case.input,
            Struct(
                ("P", made),
                ("P", made_fractions),
                ("I", FIRST_VALUE),
                ("P", np.array(case.trained, np.uint16)),
                ("H", case.count),
            ),
            Struct(("I", RATE), ("I", SEED), ("I", STEP)),
            np.full(4 * round_up(case.pixels, 2), 0x5A5A, np.int16),
        )
        # Packed again, since the padding must stay zero.
        np.testing.assert_array_equal(made, packed(wanted))
        if made_fractions is not None:
            np.testing.assert_array_equal(made_fractions, packed(wanted_fractions))
        np.testing.assert_array_equal(unpacked(made, weights.shape), wanted)
    return wanted


@settings(max_examples=80, deadline=None)
@given(case=cases(), exact=st.booleans(), size=st.integers(-6, 2))
def test_weights_take_the_step_of_numpy(
    engines: Engines, case: Case, exact: bool, size: int
) -> None:
    assume(case.count > 0)
    check(engines, case, case.error(), size, exact=exact)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
@pytest.mark.parametrize("width", [16, 17, 43])
def test_many_pixels_are_summed_in_64_bits(
    engines: Engines, width: int, kernel: tuple[int, int], exact: bool
) -> None:
    """256 and 272 pixels, and a number whose sums of extreme values don't fit 32 bits."""
    edge = (kernel[0] // 2,) * 4
    case = Case(16, width, 5, 3, kernel, (1, 1), edge, (0, 2, 3, 4), seed=1, extreme=True)
    case.__dict__["in_zero"] = 127
    case.input[...] = -128
    before = case.weights[..., list(case.trained)]
    error = np.full(case.out_shape, 32767, np.int16)
    gradient = np.abs(case.weight_gradient(error)).max()
    assert gradient > 2**29
    assert (case.gradient_shift > 0) == (width > 16)
    after = check(engines, case, error, -6, exact=exact)
    assert (after != before).any()
