"""Kernels for the host and for emulated cores, compiled once per session."""

import pytest

from simulator.machines.kernel_call import ArmKernels, HostKernels
from tests.device_runtime.kernels.calls import (
    on_cortex_m4,
    on_cortex_m7,
    on_host,
    on_vector_units,
)


@pytest.fixture(scope="session")
def engines() -> list[HostKernels | ArmKernels]:
    return [on_host(), *on_vector_units(), on_cortex_m7(), on_cortex_m4()]
