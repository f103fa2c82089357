"""Calls of one kernel on this machine and on emulated cores, which have to agree."""

from __future__ import annotations

import atexit
import copy
import shutil
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codegen.arithmetic.integers import random_move
from codegen.arithmetic.layers import INT32_MAX
from codegen.firmware.host_engine import kernel_sets
from codegen.host_kernels import VECTOR_FLAGS, host_engine_sources
from codegen.host_toolchain import host_toolchain
from device_runtime import include_directories, kernel_sources, vector_sources
from simulator.machines.kernel_call import (
    ArmKernels,
    Call,
    HostKernels,
    Struct,
    arm_kernels,
    host_kernels,
)
from simulator.machines.qemu.kernels import QemuKernels, qemu_kernels
from simulator.machines.registry import machine_kind

Ints = NDArray[np.int64]


@cache
def on_host() -> HostKernels:
    """The portable twins, with traps for undefined behaviour."""
    return host_kernels(kernel_sources(), include_directories(), sanitize=["undefined"])


@cache
def on_vector_units() -> list[HostKernels]:
    """The sets for vector units that this machine can run, with the same traps."""
    sources = [*kernel_sources(), *vector_sources()]
    return [
        host_kernels(
            sources, include_directories(), sanitize=["undefined"], flags=VECTOR_FLAGS[name]
        )
        for name in sets_of_this_machine()
    ]


@cache
def sets_of_this_machine() -> list[str]:
    """Their names."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "engine.so"
        host_toolchain().build_host(
            host_engine_sources([]), include_dirs=include_directories(), output=library
        )
        return [name for name in kernel_sets(library) if name in VECTOR_FLAGS]


@cache
def on_cortex_m7() -> ArmKernels:
    """The DSP kernels, by GCC where there is one."""
    return arm_kernels(kernel_sources(), include_directories())


@cache
def on_cortex_m4() -> ArmKernels:
    """The DSP kernels, by Clang."""
    return arm_kernels(kernel_sources(), include_directories(), cpu="cortex-m4", compiler="zig")


@cache
def in_qemu() -> list[QemuKernels]:
    """The portable twins on a Cortex-M0+ and the kernels with vectors on a Cortex-M55, these by all
    compilers that there are; nothing without QEMU."""
    if machine_kind("qemu").why_absent():
        return []
    sources, folders = kernel_sources(), include_directories()
    made = [qemu_kernels(sources, folders, cpu="cortex-m0plus")]
    made.append(qemu_kernels(sources, folders, cpu="cortex-m55", compiler="zig"))
    if shutil.which("arm-none-eabi-gcc") is not None:
        made.append(qemu_kernels(sources, folders, cpu="cortex-m55", compiler="gcc"))
    for one in made:
        atexit.register(one.close)
    return made


def call_all(function: str, arguments: Sequence[Any]) -> Call:
    """Calls ``function`` on this machine, in every way, and on all cores, which have to leave the
    same bits everywhere but in ``Scratch``; returns what the Cortex-M7 said, whose result means
    nothing where the function has none."""
    call = on_cortex_m7().call(function, *(for_m7 := copy.deepcopy(list(arguments))))
    others = [for_m7]
    for engine in (on_cortex_m4(), *in_qemu(), *on_vector_units()):
        others.append(copy.deepcopy(list(arguments)))
        engine.call(function, *others[-1])
    on_host().call(function, *arguments)
    for copies in others:
        for mine, other in zip(arguments, copies, strict=True):
            if isinstance(mine, Struct):
                for a, b, code in zip(mine.values, other.values, mine.formats, strict=True):
                    if code != "P":
                        assert a == b
                    elif isinstance(a, np.ndarray):
                        np.testing.assert_array_equal(a, b)
            elif isinstance(mine, np.ndarray) and not isinstance(mine, Scratch):
                np.testing.assert_array_equal(mine, other)
    return call


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
