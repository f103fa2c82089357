"""Calls of one kernel on this machine and on an emulated Cortex-M, which have to agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.integer_arithmetic import random_move
from codegen.layer_arithmetic import INT32_MAX
from device_runtime import include_directories, source_root
from simulator.kernel_call import ArmKernels, Call, HostKernels, Struct, arm_kernels, host_kernels

Ints = NDArray[np.int64]

_SOURCES = ["add", "bias_update", "depthwise", "depthwise_gradient", "error", "head", "loss"]
_SOURCES += ["planes", "pool", "slide"]
_SOURCES += ["average_pool", "concat", "max_pool", "requantize", "squared_error"]


@cache
def on_host() -> HostKernels:
    """The portable twins, with traps for undefined behaviour."""
    return host_kernels(_sources(), include_directories(), sanitize=["undefined"])


@cache
def on_arm() -> ArmKernels:
    """The DSP kernels."""
    return arm_kernels(_sources(), include_directories())


def _sources() -> list[Any]:
    return [source_root() / "kernels" / f"{name}.c" for name in _SOURCES]


def call_both(function: str, arguments: Sequence[Any]) -> Call:
    """Calls ``function`` on both machines, which have to leave the same bits everywhere but in
    ``Scratch``; returns what ARM said, whose result means nothing where the function has none."""
    for_arm = copy.deepcopy(list(arguments))
    there = on_arm().call(function, *for_arm)
    on_host().call(function, *arguments)
    for mine, other in zip(arguments, for_arm, strict=True):
        if isinstance(mine, Struct):
            for a, b, code in zip(mine.values, other.values, mine.formats, strict=True):
                if code != "P":
                    assert a == b
        elif isinstance(mine, np.ndarray) and not isinstance(mine, Scratch):
            np.testing.assert_array_equal(mine, other)
    return there


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
