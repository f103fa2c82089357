import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from codegen.arithmetic.integers import STATE_BITS, STEP_BITS
from codegen.program.scratch import convolution_weight_update_bytes
from simulator.machines.kernel_call import ArmKernels, HostKernels, Struct
from simulator.machines.qemu.kernels import QemuKernels
from tests.conftest import examples
from tests.device_runtime.kernels.calls import FIRST_VALUE, moved, update
from tests.device_runtime.kernels.convolution_case import (
    EDGES,
    Case,
    cases,
    packed,
    padded_pointwise,
)

Engines = list[HostKernels | ArmKernels | QemuKernels]
RATE = 26214  # 0.025


def packed_words(values: np.ndarray) -> np.ndarray:
    """Words in the order of packed bytes."""
    parts = [packed(values >> shift & 0xFF).astype(np.uint8) for shift in (0, 8, 16, 24)]
    return np.stack(parts, axis=1).copy().view(np.int32).ravel()


def check(
    engines: Engines,
    case: Case,
    error: np.ndarray,
    exponent: int,
    *,
    exact: bool,
    velocity: np.ndarray | None = None,
    apply: bool = True,
) -> np.ndarray:
    """Weights after the update, which are numpy's on every engine."""
    kept = case.seed % 2 == 1  # only the trained channels of the input
    weights = case.weights[..., list(case.trained)]
    fractions = case.values(-128, 127, *weights.shape) if exact else 0 * weights
    bits = STATE_BITS if exact else STEP_BITS
    change = case.change(error, exponent + bits + (8 if exact else 0), RATE)
    before = weights * 256 + fractions if exact else weights
    after, left = moved(before, change, bits, velocity, 200, apply)
    if exact:
        state = np.clip(after, -32512, 32512)
        wanted = (state + 128) >> 8
        wanted_fractions = state - wanted * 256
    else:
        wanted, wanted_fractions = np.clip(after, -127, 127), fractions
    size = convolution_weight_update_bytes(case.op, case.source, case.target)
    for engine in engines:
        made, made_fractions = packed(weights), packed(fractions)
        made_velocity = None if velocity is None else packed_words(velocity)
        engine.call(
            "tf_convolution_weight_update",
            case.layer,
            error,
            Struct(("i", exponent), ("i", int(np.abs(error.astype(np.int64)).max()))),
            case.input[..., list(case.trained)].copy() if kept else case.input,
            Struct(
                ("P", made),
                ("P", made_fractions if exact else None),
                ("P", made_velocity),
                ("I", FIRST_VALUE),
                ("P", np.array(case.trained, np.uint16)),
                ("H", case.count),
                ("H", case.count if kept else case.channels),
            ),
            update(RATE, 200, apply),
            np.full(size // 2, 0x5A5A, np.int16),
        )
        # Packed again, since the padding must stay zero.
        np.testing.assert_array_equal(made, packed(wanted))
        np.testing.assert_array_equal(made_fractions, packed(wanted_fractions))
        if made_velocity is not None and left is not None:
            np.testing.assert_array_equal(made_velocity, packed_words(left))
    return wanted


@examples(80)
@given(case=cases(), exact=st.booleans(), size=st.integers(-16, 16))
def test_weights_take_the_step_of_numpy(
    engines: Engines, case: Case, exact: bool, size: int
) -> None:
    assume(case.count > 0)
    check(engines, case, case.error(), size, exact=exact)


@examples(30)
@given(case=cases(), exact=st.booleans(), apply=st.booleans())
def test_changes_add_up_in_velocities(
    engines: Engines, case: Case, exact: bool, apply: bool
) -> None:
    assume(case.count > 0)
    shape = (*case.weights.shape[:-1], case.count)
    velocity = case.values(-(2**31) + 1, 2**31 - 1, *shape)
    check(engines, case, case.error(), -6, exact=exact, velocity=velocity, apply=apply)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("padding", EDGES)
def test_a_kernel_of_one_tap_takes_no_step_from_the_padding(
    engines: Engines, padding: tuple[int, int, int, int], exact: bool
) -> None:
    case = padded_pointwise(padding, (0, 2, 3, 7))
    check(engines, case, case.error(), -6, exact=exact)


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
