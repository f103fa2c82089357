"""Calls of one kernel on this machine and on an emulated Cortex-M, which have to agree."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_runtime import include_directories, source_root
from simulator.kernel_call import ArmKernels, Call, HostKernels, Struct, arm_kernels, host_kernels

Ints = NDArray[np.int64]

_SOURCES = ["add", "bias_update", "depthwise", "depthwise_gradient", "error", "head", "loss"]
_SOURCES += ["planes", "pool", "slide"]


@cache
def on_host() -> HostKernels:
    """The portable twins, with traps for undefined behaviour."""
    return host_kernels(_sources(), include_directories(), sanitize=["undefined"])


@cache
def on_arm() -> ArmKernels:
    """The DSP kernels."""
    return arm_kernels(_sources(), include_directories())


def _sources() -> list[Any]:
    root = source_root()
    return [root / "kernels" / f"{name}.c" for name in _SOURCES] + [root / "engine" / "random.c"]


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
