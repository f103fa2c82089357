"""Rounding at random: errors of devices, epochs, steps and values have nothing to do with another.

What devices share can't average out: with one seed for a cohort of 1,000 the mean of their
deltas is off by 0.29 of a quantum, with seeds of their own by 0.29 / √1000.
"""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from numpy.typing import NDArray

from fleet.protocol import device_seed
from tests.device_runtime.host_library import RUNTIME, build_library

COUNT = 20_000
BITS = 14
CHANGE = 5_000  # of 2^14: three in ten values move


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("dither")
    shim = RUNTIME.parent / "tests" / "device_runtime" / "kernels" / "dither_shim.c"
    return build_library(folder, [shim, RUNTIME / "engine" / "engine.c"])


def step_errors(
    library: ctypes.CDLL, seed: int, step: int, count: int = COUNT
) -> NDArray[np.float64]:
    """What rounding adds to each value in one step, in quanta; shape (count,)."""
    moves = np.zeros(count, np.int32)
    library.round_changes(
        *(ctypes.c_uint32(seed), ctypes.c_uint32(step), ctypes.c_int32(CHANGE)),
        *(ctypes.c_uint32(BITS), ctypes.c_uint32(count), moves.ctypes.data_as(ctypes.c_void_p)),
    )
    return moves + CHANGE / 2**BITS


def delta_errors(library: ctypes.CDLL, seed: int, count: int = COUNT) -> NDArray[np.float64]:
    """What rounding adds to each value of a delta, in quanta; shape (count,)."""
    deltas, state, zeros = np.zeros(count, np.int32), np.zeros(count, np.int16), bytes(2 * count)
    library.round_delta(
        *(ctypes.c_uint32(seed), ctypes.c_int16(37), ctypes.c_uint8(7), ctypes.c_uint16(count)),
        *(state.ctypes.data_as(ctypes.c_void_p), zeros, deltas.ctypes.data_as(ctypes.c_void_p)),
    )
    return deltas - 37 / 2**7


def correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(np.corrcoef(first, second)[0, 1])


LIMIT = 5 / np.sqrt(COUNT)  # five times what chance gives


def test_errors_of_two_devices_have_nothing_to_do_with_another(library: ctypes.CDLL) -> None:
    seeds = [device_seed(round_seed, name) for round_seed in (1, 2) for name in ("cow-1", "cow-2")]
    steps = [step_errors(library, seed, 3) for seed in seeds]
    deltas = [delta_errors(library, seed) for seed in seeds]
    for errors in (steps, deltas):
        for i in range(4):
            for j in range(i):
                assert abs(correlation(errors[i], errors[j])) < LIMIT
            assert abs(errors[i].mean()) < LIMIT
    assert correlation(steps[0], step_errors(library, seeds[0], 3)) > 0.999


@pytest.mark.parametrize("later", [4, 5, 40, 1203])
def test_errors_of_two_steps_and_so_of_two_epochs_have_nothing_to_do_with_another(
    library: ctypes.CDLL, later: int
) -> None:
    seed = device_seed(7, "cow-1")
    assert (
        abs(correlation(step_errors(library, seed, 3), step_errors(library, seed, later))) < LIMIT
    )


@pytest.mark.parametrize("distance", [1, 2, 32, 1000])
def test_errors_of_two_values_have_nothing_to_do_with_another(
    library: ctypes.CDLL, distance: int
) -> None:
    seed = device_seed(7, "cow-1")
    for errors in (step_errors(library, seed, 3), delta_errors(library, seed)):
        assert abs(correlation(errors[distance:], errors[:-distance])) < LIMIT


@pytest.mark.parametrize("kind", ["step", "delta"])
def test_the_mean_over_a_thousand_devices_is_thirty_times_better_than_one(
    library: ctypes.CDLL, kind: str
) -> None:
    def errors(seed: int) -> NDArray[np.float64]:
        return (
            step_errors(library, seed, 3, 500)
            if kind == "step"
            else delta_errors(library, seed, 500)
        )

    one = np.sqrt((errors(device_seed(1, "cow-0")) ** 2).mean())
    own = np.mean([errors(device_seed(1, f"cow-{n}")) for n in range(1000)], axis=0)
    assert np.sqrt((own**2).mean()) == pytest.approx(one / np.sqrt(1000), rel=0.1)
    shared = np.mean([errors(1)] * 1000, axis=0)
    assert np.sqrt((shared**2).mean()) > 20 * np.sqrt((own**2).mean())
