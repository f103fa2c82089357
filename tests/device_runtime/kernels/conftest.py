"""Kernels for the host and for emulated cores, compiled once per session."""

from pathlib import Path

import pytest

import device_runtime
from simulator.kernel_call import ArmKernels, HostKernels, arm_kernels, host_kernels

RUNTIME = Path(device_runtime.__file__).parent
CONVOLUTION = [
    *sorted((RUNTIME / "kernels").glob("convolution*.c")),
    *sorted((RUNTIME / "kernels").glob("block_*.c")),
    RUNTIME / "kernels" / "merge.c",
]
INCLUDES = [RUNTIME / "include", RUNTIME / "kernels"]


@pytest.fixture(scope="session")
def host() -> HostKernels:
    return host_kernels(CONVOLUTION, INCLUDES)


@pytest.fixture(scope="session")
def cortex_m7() -> ArmKernels:
    return arm_kernels(CONVOLUTION, INCLUDES, compiler="gcc")


@pytest.fixture(scope="session")
def cortex_m4_by_zig() -> ArmKernels:
    return arm_kernels(CONVOLUTION, INCLUDES, cpu="cortex-m4", compiler="zig")


@pytest.fixture(scope="session")
def engines(
    host: HostKernels, cortex_m7: ArmKernels, cortex_m4_by_zig: ArmKernels
) -> list[HostKernels | ArmKernels]:
    return [host, cortex_m7, cortex_m4_by_zig]
