"""Kernels for the host and for emulated cores, compiled once per session."""

import pytest

from simulator.machines.kernel_call import ArmKernels, HostKernels
from simulator.machines.qemu.kernels import QemuKernels
from tests.device_runtime.kernels.calls import (
    in_qemu,
    on_cortex_m4,
    on_cortex_m7,
    on_host,
    on_vector_units,
)


@pytest.fixture(scope="session")
def engines() -> list[HostKernels | ArmKernels | QemuKernels]:
    return [on_host(), *on_vector_units(), on_cortex_m7(), on_cortex_m4(), *in_qemu()]
