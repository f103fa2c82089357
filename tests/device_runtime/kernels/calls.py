"""Calls of one kernel on this machine and on emulated cores, which have to agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import random_move
from codegen.arithmetic.layers import INT32_MAX
from device_runtime import include_directories, kernel_sources
from simulator.machines.kernel_call import (
    ArmKernels,
    Call,
    HostKernels,
    Struct,
    arm_kernels,
    host_kernels,
)

Ints = NDArray[np.int64]


@cache
def on_host() -> HostKernels:
    """The portable twins, with traps for undefined behaviour."""
    return host_kernels(kernel_sources(), include_directories(), sanitize=["undefined"])


@cache
def on_cortex_m7() -> ArmKernels:
    """The DSP kernels, by GCC where there is one."""
    return arm_kernels(kernel_sources(), include_directories())


@cache
def on_cortex_m4() -> ArmKernels:
    """The DSP kernels, by Clang."""
    return arm_kernels(kernel_sources(), include_directories(), cpu="cortex-m4", compiler="zig")


def call_all(function: str, arguments: Sequence[Any]) -> Call:
    """Calls ``function`` on this machine and on both cores, which have to leave the same bits
    everywhere but in ``Scratch``; returns what the Cortex-M7 said, whose result means nothing where
    the function has none."""
    calls = []
    for_arm = [copy.deepcopy(list(arguments)) for _ in range(2)]
    for engine, copies in zip((on_cortex_m7(), on_cortex_m4()), for_arm, strict=True):
        calls.append(engine.call(function, *copies))
    on_host().call(function, *arguments)
    for copies in for_arm:
        for mine, other in zip(arguments, copies, strict=True):
            if isinstance(mine, Struct):
                for a, b, code in zip(mine.values, other.values, mine.formats, strict=True):
                    if code != "P":
                        assert a == b
                    elif isinstance(a, np.ndarray):
                        np.testing.assert_array_equal(a, b)
            elif isinstance(mine, np.ndarray) and not isinstance(mine, Scratch):
                np.testing.assert_array_equal(mine, other)
    return calls[0]


class Scratch(np.ndarray[Any, np.dtype[np.int16]]):
    """Memory whose content after a call is nobody's business."""

    def __new__(cls, size: int) -> Scratch:
        """``size`` bytes of garbage."""
        words = np.full(-(-size // 2), 0x7B3D, np.int16)
        return words.view(cls)


SEED, STEP, FIRST_VALUE = 17, 3, 1000


def update(rate: int, momentum_q8: int = 0, apply: bool = True) -> Struct:
    """A ``tf_update`` of this rate (Q20)."""
    return Struct(("I", rate), ("I", SEED), ("I", STEP), ("H", momentum_q8), ("B", int(apply)))


def whole(velocity: NDArray[np.int32] | None = None) -> Struct:
    """A ``tf_whole`` whose first value has the index FIRST_VALUE."""
    return Struct(("P", velocity), ("I", FIRST_VALUE))


def moved(
    before: Ints, change: Ints, bits: int, velocity: Ints | None, momentum_q8: int, apply: bool
) -> tuple[Ints, Ints | None]:
    """``before`` after a step, not clamped yet, and the velocity that remains."""
    if velocity is not None:
        change = np.clip(velocity + change, -INT32_MAX, INT32_MAX)
        if not apply:
            return before, change
        velocity = change * momentum_q8 >> 8
    return before + random_move(change, bits, SEED, STEP, FIRST_VALUE), velocity
