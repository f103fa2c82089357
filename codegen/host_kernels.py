"""Sets of kernels for this machine: the portable twins, and those for its vector units.

A library has all sets of its architecture, the same C compiled once for each, and chooses when it
is loaded (device_runtime/kernel_sets). All of them compute the same bits.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from codegen.host_toolchain import Source
from device_runtime import (
    engine_core_sources,
    kernel_choice_source,
    kernel_sources,
    kernel_table_source,
    vector_sources,
)

PORTABLE = "portable"
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
# Compilers vectorize what has no vector code of its own best at half of the width.
VECTOR_FLAGS = {
    "avx512": ("-DTF_VECTOR", *_AVX512, "-mprefer-vector-width=256"),
    "avx2": ("-DTF_VECTOR", "-mavx2"),
    "neon": ("-DTF_VECTOR",),
}
"""What sets for vector units are compiled with, by name, the best first."""
_ARCHITECTURES = {"x86_64": ("avx512", "avx2"), "aarch64": ("neon",), "arm64": ("neon",)}
SETS = (*VECTOR_FLAGS, PORTABLE)
"""Names of all sets."""


def vector_sets() -> tuple[str, ...]:
    """Names of the sets for vector units that machines of this architecture may have."""
    # The kernel may be of 64 bits though its programs are of 32.
    return _ARCHITECTURES.get(platform.machine(), ()) if sys.maxsize > 2**32 else ()


def host_engine_sources(generated: Sequence[Source]) -> list[Source]:
    """The training engine with all sets of kernels, and a model's generated C, for this machine."""
    callers = [
        Source(item.path, item.optimize, item.warnings, (*item.flags, "-DTF_KERNEL_SETS"))
        for item in generated
    ]
    choice = Source(kernel_choice_source(), flags=("-DTF_KERNEL_SETS",))
    units = [*callers, *map(Source, engine_core_sources()), choice, *_set(PORTABLE, (), ())]
    for name in vector_sets():
        units += _set(name, vector_sources(), VECTOR_FLAGS[name])
    return units


def _set(name: str, more: Sequence[Path], flags: tuple[str, ...]) -> list[Source]:
    named = (f"-DTF_KERNEL_SET={name}", *flags)
    paths = [*kernel_sources(), *more, kernel_table_source()]
    return [Source(path, optimize="-O3", flags=named) for path in paths]
