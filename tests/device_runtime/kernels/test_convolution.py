import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codegen.program.scratch import convolution_forward_bytes
from simulator.machines.kernel_call import ArmKernels, HostKernels, View
from simulator.machines.qemu.kernels import QemuKernels
from tests.conftest import examples
from tests.device_runtime.kernels.convolution_case import EDGES, Case, cases, padded_pointwise

Engines = list[HostKernels | ArmKernels | QemuKernels]


def scratch_of(case: Case) -> np.ndarray:
    size = convolution_forward_bytes(case.op, case.source, case.target, case.at_once)
    return np.full(size // 2, 0x5A5A, np.int16)


def forward(
    engine: HostKernels | ArmKernels, case: Case, *, misaligned: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Output and mask of the whole layer."""
    codes = np.zeros(1 + int(np.prod(case.out_shape)), np.int8)
    source = np.concatenate([np.zeros(1, np.int8), case.input.ravel()])
    mask = np.full(-(-(codes.size - 1) // 8), 0xA5, np.uint8)
    engine.call(
        "tf_convolution_forward",
        case.layer,
        case.span(0, case.out_shape[0]),
        View(source, 1) if misaligned else case.input,
        case.tf_weights,
        case.bias,
        View(codes, 1) if misaligned else View(codes, 0),
        mask,
        scratch_of(case),
        case.at_once,
    )
    made = codes[1:] if misaligned else codes[:-1]
    return made.reshape(case.out_shape), mask


@examples(60)
@given(case=cases(), misaligned=st.booleans())
def test_codes_and_mask_are_those_of_numpy(engines: Engines, case: Case, misaligned: bool) -> None:
    for engine in engines:
        output, mask = forward(engine, case, misaligned=misaligned)
        np.testing.assert_array_equal(output, case.output)
        np.testing.assert_array_equal(mask, case.mask)


@pytest.mark.parametrize("trained", [(), (1, 2, 7)])
@pytest.mark.parametrize("padding", EDGES)
def test_a_kernel_of_one_tap_sees_the_padding_on_every_side(
    engines: Engines, padding: tuple[int, int, int, int], trained: tuple[int, ...]
) -> None:
    case = padded_pointwise(padding, trained)
    for engine in engines:
        output, mask = forward(engine, case)
        np.testing.assert_array_equal(output, case.output)
        np.testing.assert_array_equal(mask, case.mask)


def outputs_match_in_rings(
    engine: HostKernels | ArmKernels, case: Case, rows: int, in_ring: int, out_ring: int
) -> None:
    """Run so many rows at a time, of an input and to an output that are rings of rows."""
    height, width, channels = case.out_shape
    top = case.padding[0]
    ring = np.zeros((in_ring, case.width, case.channels), np.int8)
    output = np.zeros((out_ring, width, channels), np.int8)
    scratch = scratch_of(case)
    for first in range(0, height, rows):
        end = min(first + rows, height)
        last_seen = (end - 1) * case.stride[0] - top + case.kernel[0]
        for y in range(max(0, first * case.stride[0] - top), min(last_seen, case.height)):
            ring[y % in_ring] = case.input[y]
        engine.call(
            "tf_convolution_forward",
            case.layer,
            case.span(first, end, in_ring, out_ring),
            ring,
            case.tf_weights,
            case.bias,
            output,
            None,
            scratch,
            case.at_once,
        )
        for y in range(first, end):
            np.testing.assert_array_equal(output[y % out_ring], case.output[y])


@examples(40)
@given(case=cases(), data=st.data())
def test_rows_of_rings_are_computed_in_parts(
    engines: Engines, case: Case, data: st.DataObject
) -> None:
    """The rows that a step reads lie in a ring, and so do those that it writes."""
    height = case.out_shape[0]
    rows = data.draw(st.integers(1, height), "rows at once")
    seen = (rows - 1) * case.stride[0] + case.kernel[0]
    in_ring = data.draw(st.integers(min(seen, case.height), case.height), "in_ring")
    out_ring = data.draw(st.integers(rows, height), "out_ring")
    for engine in engines:
        outputs_match_in_rings(engine, case, rows, in_ring, out_ring)


@pytest.mark.parametrize("trained", [(), (1, 2, 7)])
@pytest.mark.parametrize("rings", [(3, 4), (4, 3), (5, 5), (7, 7)])
@pytest.mark.parametrize(("width", "inputs", "outputs"), [(5, 8, 6), (4, 12, 16), (3, 8, 3)])
def test_rows_of_a_pointwise_layer_go_on_up_to_the_end_of_a_ring(
    engines: Engines,
    width: int,
    inputs: int,
    outputs: int,
    rings: tuple[int, int],
    trained: tuple[int, ...],
) -> None:
    case = Case(7, width, inputs, outputs, (1, 1), (1, 1), (0, 0, 0, 0), trained, seed=width)
    for engine in engines:
        outputs_match_in_rings(engine, case, 3, *rings)


@pytest.mark.parametrize("rings", [(2, 3), (3, 2), (5, 8)])
@pytest.mark.parametrize("padding", EDGES)
def test_rows_of_rings_see_the_padding_around_a_kernel_of_one_tap(
    engines: Engines, padding: tuple[int, int, int, int], rings: tuple[int, int]
) -> None:
    for engine in engines:
        outputs_match_in_rings(engine, padded_pointwise(padding), 2, *rings)


@examples(25)
@given(case=cases(pointwise=True), before=st.integers(0, 40))
def test_a_pointwise_output_may_lie_over_its_input(
    engines: Engines, case: Case, before: int
) -> None:
    """From its place, or some way before it, where no output is longer than its input."""
    size = int(np.prod(case.out_shape))
    if case.outputs > case.channels:
        # The last output may end where the last input does, if that leaves every block its input.
        before = max(before, case.pixels * (case.outputs - case.channels))
    for engine in engines:
        memory = np.zeros(before + max(case.input.size, size), np.int8)
        memory[before : before + case.input.size] = case.input.ravel()
        engine.call(
            "tf_convolution_forward",
            case.layer,
            case.span(0, case.out_shape[0]),
            View(memory, before),
            case.tf_weights,
            case.bias,
            memory,
            None,
            scratch_of(case),
            case.at_once,
        )
        np.testing.assert_array_equal(memory[:size].reshape(case.out_shape), case.output)


def test_many_rows_of_which_some_are_trained(engines: Engines) -> None:
    trained = tuple(range(1, 96, 2))
    case = Case(3, 3, 96, 201, (1, 1), (1, 1), (0, 0, 0, 0), trained, seed=5)
    for engine in engines:
        output, mask = forward(engine, case)
        np.testing.assert_array_equal(output, case.output)
        np.testing.assert_array_equal(mask, case.mask)


@pytest.mark.parametrize("outputs", [1, 2, 16])
@pytest.mark.parametrize("length", [1, 4, 30, 32, 33, 34, 64, 68, 130, 576])
def test_every_length_goes_through_the_unrolled_loop(
    engines: Engines, length: int, outputs: int
) -> None:
    trained = tuple(range(0, length, 3))
    case = Case(1, 5, length, outputs, (1, 1), (1, 1), (0, 0, 0, 0), trained, seed=length)
    for engine in engines:
        output, mask = forward(engine, case)
        np.testing.assert_array_equal(output, case.output)
        np.testing.assert_array_equal(mask, case.mask)
