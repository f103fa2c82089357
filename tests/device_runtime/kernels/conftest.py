"""Kernels for the host and for emulated cores, compiled once per session."""

import pytest

from simulator.machines.kernel_call import ArmKernels, HostKernels
from simulator.machines.qemu.kernels import QemuKernels
from tests.device_runtime.kernels.calls import (
    on_cortex_m0plus,
    on_cortex_m4,
    on_cortex_m7,
    on_cortex_m55,
    on_host,
    on_vector_units,
)


@pytest.fixture(scope="session")
def engines() -> list[HostKernels | ArmKernels | QemuKernels]:
    on_cores = [on_cortex_m7(), on_cortex_m4(), on_cortex_m0plus(), *on_cortex_m55()]
    return [on_host(), *on_vector_units(), *on_cores]
