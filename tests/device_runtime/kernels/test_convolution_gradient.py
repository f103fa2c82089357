import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.program.scratch import convolution_input_gradient_bytes
from simulator.machines.kernel_call import ArmKernels, HostKernels, Struct, View
from simulator.machines.qemu.kernels import QemuKernels
from tests.conftest import examples
from tests.device_runtime.kernels.convolution_case import EDGES, Case, cases, padded_pointwise
from tests.device_runtime.kernels.error_case import scale_of

Engines = list[HostKernels | ArmKernels | QemuKernels]


def scratch_of(case: Case) -> np.ndarray:
    size = convolution_input_gradient_bytes(
        case.op, case.source, case.target, case.count, case.at_once
    )
    return np.full(size // 2, 0x5A5A, np.int16)


def check(engines: Engines, case: Case, error: np.ndarray) -> None:
    wanted, exponent = case.input_gradient(error, -9)
    for engine in engines:
        out = np.full((case.height, case.width, case.channels), 0x1234, np.int16)
        out_scale = Struct(("i", 0), ("i", 0))
        engine.call(
            "tf_convolution_input_gradient",
            case.layer,
            error,
            scale_of(error, -9),
            case.tf_weights,
            out,
            out_scale,
            scratch_of(case),
            case.at_once,
        )
        np.testing.assert_array_equal(out, wanted)
        assert out_scale.values == [exponent, int(np.abs(wanted).max())]


@examples(80)
@given(case=cases(), bits=st.integers(1, 15))
def test_errors_and_their_scale_are_those_of_numpy(engines: Engines, case: Case, bits: int) -> None:
    check(engines, case, case.error(2**bits - 1))


@pytest.mark.parametrize("trained", [(), (1, 2, 7)])
@pytest.mark.parametrize("padding", EDGES)
def test_errors_of_the_padding_around_a_kernel_of_one_tap_are_left_out(
    engines: Engines, padding: tuple[int, int, int, int], trained: tuple[int, ...]
) -> None:
    case = padded_pointwise(padding, trained)
    check(engines, case, case.error())


@pytest.mark.parametrize("kernel", [(1, 1), (1, 2)])
def test_rows_of_weights_may_lie_further_apart_than_16_bits_count(
    engines: Engines, kernel: tuple[int, int]
) -> None:
    case = Case(1, 2, 11_000 // kernel[1], 6, kernel, (1, 1), (0, 0, 0, 0), (), seed=4)
    check(engines, case, case.error())


def test_an_error_of_zeros_stays_one(engines: Engines) -> None:
    case = Case(5, 4, 6, 4, (3, 3), (2, 2), (1, 1, 1, 1), (1,), seed=1)
    check(engines, case, np.zeros(case.out_shape, np.int16))


def test_the_smallest_code_is_never_made(engines: Engines) -> None:
    """Saturation ends at -32767, so that an error can change its sign."""
    case = Case(4, 4, 4, 32, (1, 1), (1, 1), (0, 0, 0, 0), (), seed=2, extreme=True)
    case.__dict__["error_shift"] = 3
    error = np.where(case.weights[:, 0, 0, 0] > 0, -32767, 32767).astype(np.int16)
    error = np.ascontiguousarray(np.broadcast_to(error, case.out_shape))
    assert case.input_gradient(error, 0)[0].min() == -32767
    check(engines, case, error)


@examples(25)
@given(case=cases(pointwise=True), before=st.integers(0, 40))
def test_a_pointwise_gradient_may_lie_over_the_error(
    engines: Engines, case: Case, before: int
) -> None:
    error = case.error()
    wanted, _ = case.input_gradient(error, 0)
    if case.channels > case.outputs:
        before = max(before, case.pixels * (case.channels - case.outputs))
    for engine in engines:
        memory = np.zeros(before + max(error.size, wanted.size), np.int16)
        memory[before : before + error.size] = error.ravel()
        engine.call(
            "tf_convolution_input_gradient",
            case.layer,
            View(memory, before),
            scale_of(error, 0),
            case.tf_weights,
            memory,
            Struct(("i", 0), ("i", 0)),
            scratch_of(case),
            case.at_once,
        )
        np.testing.assert_array_equal(memory[: wanted.size].reshape(wanted.shape), wanted)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_weights_too_many_to_be_merged_at_once(engines: Engines, kernel: tuple[int, int]) -> None:
    edge = (kernel[0] // 2,) * 4
    case = Case(3, 3, 97, 130, kernel, (1, 1), edge, tuple(range(1, 97, 3)), seed=5)
    check(engines, case, case.error())


@pytest.mark.parametrize("outputs", [1, 2, 15, 16, 17, 18, 30, 48, 131])
def test_every_number_of_outputs_goes_through_the_unrolled_loop(
    engines: Engines, outputs: int
) -> None:
    case = Case(1, 6, 8, outputs, (1, 1), (1, 1), (0, 0, 0, 0), (0, 1, 5), seed=outputs)
    check(engines, case, case.error())
